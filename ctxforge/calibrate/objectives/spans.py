"""Which parts of a text are trained on: everything, answers alone, or answers and long prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ctxforge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Policy = Literal["all", "answers", "long-prompts"]
POLICIES: tuple[Policy, ...] = ("all", "answers", "long-prompts")
LONG_PROMPT = 1024


@dataclass(frozen=True)
class Span:
    """A stretch of a text's tokens.

    Attributes:
        start, end: first token, and one past the last.
        answer: whether the model is to say it; False for what it is given (system, user, tool).
    """

    start: int
    end: int
    answer: bool


def counted_spans(
    spans: Sequence[Span], length: int, policy: Policy = "answers", *, long_prompt: int = LONG_PROMPT
) -> NDArray[np.bool_]:
    """Which tokens of a text are to be predicted, bool [length]: the `counted` of `loss_model.next_tokens`.

    "long-prompts" is what 2309.16039 found to help in its instruction tuning, where long prompts have short answers:
    there the loss is taken on the prompt too, and elsewhere on answers alone. From which length on is our choice.

    Args:
        spans: of the text, ascending and apart. Tokens outside of all, such as a chat template's, count as prompt.
        length: tokens of the text.
        policy: "all", "answers" or "long-prompts".
        long_prompt: fewest tokens of a stretch between answers that "long-prompts" trains on.

    Raises:
        UsageError: an unknown policy, or spans that overlap, are empty or lie outside of the text.
    """
    import numpy as np

    if policy not in POLICIES:
        raise UsageError(f"no such choice of tokens to train on: {policy}", f"choose one of {', '.join(POLICIES)}")
    _check(spans, length)
    counted = np.full(length, policy == "all", dtype=np.bool_)
    answers = [span for span in spans if span.answer]
    for span in answers:
        counted[span.start : span.end] = True
    if policy == "long-prompts":
        starts = [0, *(span.end for span in answers)]
        ends = [*(span.start for span in answers), length]
        for start, end in zip(starts, ends, strict=True):
            counted[start:end] |= end - start >= long_prompt
    return counted


def _check(spans: Sequence[Span], length: int) -> None:
    before = 0
    for span in spans:
        if not before <= span.start < span.end <= length:
            raise UsageError(
                f"the span {span.start}:{span.end} overlaps another, is empty or leaves a text of {length} tokens",
                "give spans in ascending order that lie inside their text",
            )
        before = span.end
