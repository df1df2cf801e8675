"""How many tokens a generated answer may have."""

from __future__ import annotations

from collections.abc import Sequence

from ctxforge.verification.tasks.frame import Frame


def generation_room(frame: Frame, published: int, answers: Sequence[str]) -> int:
    """The published budget, or half as much again as the answers need where a tokenizer spends more on them.

    Budgets are published for vocabularies of tens of thousands of tokens; bytes need three times as many.
    """
    needed = len(frame.encode.once([" " + ", ".join(answers) + "."])[0])
    return max(published, needed + (needed + 1) // 2)
