"""The length budget: how many tokens a model may see, what RULER is asked for, and which documents do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctxforge.errors import UsageError


@dataclass(frozen=True)
class LeftOut:
    """A document that does not fit.

    Attributes:
        model: "result" or "source".
        task: lm-eval's name.
        document: its number in the task.
        length: nominal length of the task, for RULER; None otherwise.
        tokens: tokens of the prompt, or of prompt and answer where the answer is given.
        generated: tokens that are to be generated after it.
        limit: tokens that the model may see.
    """

    model: str
    task: str
    document: int
    length: int | None
    tokens: int
    generated: int
    limit: int


@dataclass(frozen=True)
class Budget:
    """Tokens that a model may see at once, those it generates included.

    Attributes:
        limit: tokens; becomes lm-eval's `max_length`.
    """

    limit: int

    def fits_generation(self, tokens: int, generated: int) -> bool:
        """Whether a prompt leaves room for what is to be generated: lm-eval cuts it to `max_length - max_gen_toks`."""
        return tokens + generated <= self.limit

    def fits_scoring(self, context: int, continuation: int) -> bool:
        """Whether context and continuation are scored whole: the last token is not fed, and lm-eval cuts the rest."""
        return context + continuation - 1 <= self.limit


def asked_length(nominal: int, limits: Sequence[int], reserve: int) -> int:
    """The length to ask a RULER generator for, so that what it does not count still fits.

    A length well inside every limit is asked for as it is, which makes its scores comparable with lm-eval's own. One
    at a limit is lowered by the reserve.

    Args:
        nominal: the length in tokens that is reported.
        limits: tokens that each model may see; models that may see fewer than `nominal` take no part.
        reserve: tokens of a prompt that the generator does not count.

    Raises:
        UsageError: no model sees `nominal` tokens, or nothing would be left.
    """
    able = [limit for limit in limits if limit >= nominal]
    if not able:
        raise UsageError(
            f"RULER at {nominal} tokens does not fit the model, which sees {max(limits)}.",
            "Give lengths up to the target length of the conversion.",
        )
    asked = min(nominal, min(able) - reserve)
    if asked < 1:
        raise UsageError(
            f"RULER at {nominal} tokens leaves no room beside the {reserve} tokens around a prompt.",
            "Give a longer length.",
        )
    return asked
