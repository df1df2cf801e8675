"""Rows to batches: padding on the right, targets, and rows of like length together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.placement.layout import Layout
from ctxforge.errors import UsageError

PADDING = -1
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one length, [B, T]; the arrays are those of `Layout`.

    Padding has document -1, weight 0, and positions 0, 1, ... like a text of its own, so that it lengthens no context.

    Attributes:
        rows: the layouts, without padding.
    """

    rows: tuple[Layout, ...]
    ids: NDArray[np.int64]
    positions: NDArray[Any]
    documents: NDArray[np.int64]
    weights: NDArray[np.float32]
    extended: NDArray[np.bool_]

    @property
    def isolated(self) -> bool:
        """Whether a row holds several documents."""
        return any(row.isolated for row in self.rows)

    @property
    def contiguous(self) -> bool:
        """Whether positions rise by 1 in every document."""
        return all(row.contiguous for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(row.length for row in self.rows)


def collate(rows: Sequence[Layout], *, pad_id: int = 0, multiple: int = 1, length: int | None = None) -> Batch:
    """Rows as one batch, padded on the right.

    Args:
        rows: at least one.
        pad_id: token id of the padding. Which one does not matter: nothing sees it and it has no loss.
        multiple: the length is rounded up to a multiple of this (context parallelism: twice the processes).
        length: pad to this length before rounding, rather than to the longest row.

    Raises:
        UsageError: no rows, a row longer than `length`, or a multiple below 1.
    """
    longest = max((row.length for row in rows), default=0)
    size = longest if length is None else length
    if not rows or multiple < 1 or size < longest or pad_id < 0:
        raise UsageError(
            f"{len(rows)} rows of up to {longest} tokens for a batch of length {size}, multiple {multiple}",
            "give at least one row, a length that holds it, a multiple of at least 1 and a padding id of the tokenizer",
        )
    size = -(-size // multiple) * multiple
    padding = [size - row.length for row in rows]
    joined = zip(rows, padding, strict=True)
    parts = [
        (
            np.pad(row.ids, (0, extra), constant_values=pad_id),
            np.concatenate([row.positions, np.arange(extra)]),
            np.pad(row.documents, (0, extra), constant_values=PADDING),
            np.pad(row.weights, (0, extra)),
            # As the row's last token, so that padding brings no second rotation into a batch that has one.
            np.pad(row.extended, (0, extra), mode="edge"),
        )
        for row, extra in joined
    ]
    ids, positions, documents, weights, extended = (np.stack(column) for column in zip(*parts, strict=True))
    return Batch(tuple(rows), ids, positions, documents, weights, extended)


def next_tokens(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What each token is to predict, already shifted: labels int64 [B, T] and their weights float32 [B, T].

    Entry t belongs to the logits at t and to token t + 1. Labels are -100 where the weight is 0: in padding, at the
    last token of a document, and where the layout says so.
    """
    weights = np.pad(batch.weights[:, 1:], ((0, 0), (0, 1)))
    labels = np.pad(batch.ids[:, 1:], ((0, 0), (0, 1)))
    return np.where(weights > 0, labels, IGNORED), weights


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of rows in batches of at most `size`, rows of like length together; nothing is drawn.

    Rows are sorted by length, longest first, and by index among equals, and cut into batches. So padding is least, and
    a length that does not fit in memory shows in the first step. A loop that wants another order shuffles the batches.

    Raises:
        UsageError: a batch of less than one row.
    """
    if size < 1:
        raise UsageError(f"batches of {size} rows", "give at least 1")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + size] for start in range(0, len(order), size)]
