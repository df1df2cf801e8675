"""A step's rows as forward passes of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from ctxforge.calibrate.placement import Batch, Layout, collate


def micro_batches(rows: Sequence[Layout], tokens_at_once: int, *, multiple: int = 1) -> list[Batch]:
    """Batches of at most `tokens_at_once` tokens, padding included, or of one row where that is longer.

    Rows that need explicit masks (several documents) don't share a pass with rows that run without, and rows of like
    length stand together. Which rows meet does not matter to the gradient: the loss is divided by the tokens of the
    whole step.

    Args:
        rows: of a step on this process.
        tokens_at_once: see above.
        multiple: lengths are padded to a multiple of this.
    """
    found: list[Batch] = []
    for isolated in (False, True):
        chosen = sorted((row for row in rows if row.isolated is isolated), key=lambda row: -row.length)
        while chosen:
            count = max(1, tokens_at_once // (-(-chosen[0].length // multiple) * multiple))
            found.append(collate(chosen[:count], multiple=multiple))
            chosen = chosen[count:]
    return found
