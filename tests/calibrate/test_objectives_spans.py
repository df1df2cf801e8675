"""Which tokens count: policies, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ctxforge.calibrate.objectives.spans import Span, counted_spans
from ctxforge.errors import UsageError

# A prompt of 6, an answer of 2, a prompt of 3, an answer of 1, and a closing token.
CHAT = [Span(0, 6, False), Span(6, 8, True), Span(8, 11, False), Span(11, 12, True)]
ANSWERS = {6, 7, 11}


def counted(policy: Any, long_prompt: int = 4, length: int = 13) -> set[int]:
    found = counted_spans(CHAT, length, policy, long_prompt=long_prompt)
    assert found.shape == (length,)
    return {number for number, counts in enumerate(found) if counts}


def test_answers() -> None:
    assert counted("answers") == ANSWERS


def test_all() -> None:
    assert counted("all") == set(range(13))


@pytest.mark.parametrize(
    ("long_prompt", "more"), [(7, set()), (6, set(range(6))), (4, set(range(6))), (3, {*range(6), 8, 9, 10})]
)
def test_long_prompts(long_prompt: int, more: set[int]) -> None:
    assert counted("long-prompts", long_prompt) == ANSWERS | more


def test_a_text_without_answers_is_a_prompt() -> None:
    assert counted_spans([], 5, "long-prompts", long_prompt=5).all()
    assert not counted_spans([], 5, "long-prompts", long_prompt=6).any()


@pytest.mark.parametrize(
    "spans", [[Span(0, 3, True), Span(2, 4, True)], [Span(2, 2, True)], [Span(3, 9, True)], [Span(-1, 2, True)]]
)
def test_bad_spans(spans: list[Span]) -> None:
    with pytest.raises(UsageError):
        counted_spans(spans, 8)


def test_bad_policy() -> None:
    with pytest.raises(UsageError) as caught:
        counted_spans([], 8, "prompts")  # type: ignore[arg-type]
    assert "long-prompts" in caught.value.remedy
