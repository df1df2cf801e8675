"""Rows of one kind from one source, numbered without end: row m is a function of the seed and m."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.permute import bounded, permutation
from ctxforge.calibrate.data.split import Ranges

RowKind = Literal["long", "short"]

_ROWS, _SHIFTS, _DOCUMENTS = 1, 2, 3


@dataclass(frozen=True)
class Piece:
    """A stretch of one document.

    Attributes:
        source: index of the source.
        document: index in its cache.
        start, stop: tokens of the document.
    """

    source: int
    document: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Pool:
    """Long or short rows of one source in one stage.

    Attributes:
        kind: `long`: one window of `size` tokens of one document. `short`: documents one after another, cut every
            `size` tokens; a document that is cut goes on in another row.
        ranges: what is drawn from.
        size: tokens of a row without the tokenizer's prefix; of a short row with those of all its pieces but one that
            goes on.
        source: index of the source.
        tag: index of the stage; with the source it makes the pool's stream of random numbers its own.
        bounds: of long rows the running count of windows, of short ones that of tokens, int64 [ranges + 1].
        epoch_rows: rows after which everything was drawn once.
    """

    kind: RowKind
    ranges: Ranges
    size: int
    source: int
    tag: int
    bounds: NDArray[np.int64]
    epoch_rows: int

    def row(self, seed: int, number: int) -> tuple[Piece, ...]:
        """The pieces of row `number`.

        Rows number * epoch_rows to (number + 1) * epoch_rows - 1 are one epoch. Within it, of long rows, every window
        is drawn once: windows of a document don't overlap, and begin anew at a random place each epoch. Of short
        rows, every token is.
        """
        epoch, at = divmod(number, self.epoch_rows)
        order = self._epochs(seed, epoch)
        row = int(order.rows[at])
        return (self._window(order, row),) if self.kind == "long" else self._packed(order, row)

    @cached_property
    def _epochs(self) -> Callable[[int, int], _Epoch]:
        # The last two only: an epoch of ten million documents takes 300 MB.
        return lru_cache(maxsize=2)(self._order)

    def _order(self, seed: int, epoch: int) -> _Epoch:
        stream = (seed, self.tag, self.source, 0 if self.kind == "long" else 1, epoch)
        rows = permutation(self.epoch_rows, *stream, _ROWS)
        if self.kind == "long":
            spare = self.ranges.lengths - np.diff(self.bounds) * self.size
            return _Epoch(rows, bounded(spare + 1, *stream, _SHIFTS), self.bounds)
        order = permutation(len(self.ranges), *stream, _DOCUMENTS)
        return _Epoch(rows, order, _running(np.diff(self.bounds)[order]))

    def _window(self, order: _Epoch, row: int) -> Piece:
        chosen = int(np.searchsorted(order.bounds, row, side="right")) - 1
        shift = int(order.ranges[chosen])
        start = int(self.ranges.start[chosen]) + shift + (row - int(order.bounds[chosen])) * self.size
        return Piece(self.source, int(self.ranges.document[chosen]), start, start + self.size)

    def _packed(self, order: _Epoch, row: int) -> tuple[Piece, ...]:
        bounds = order.bounds
        prefix = len(self.ranges.cache.header.prefix)
        start, stop = row * self.size, min((row + 1) * self.size, int(bounds[-1]))
        pieces = []
        for place in range(int(np.searchsorted(bounds, start, side="right")) - 1, len(self.ranges)):
            if bounds[place] >= stop:
                break
            chosen = int(order.ranges[place])
            begins = int(self.ranges.start[chosen]) - prefix
            first = begins + max(start - int(bounds[place]), prefix)
            last = begins + min(stop, int(bounds[place + 1])) - int(bounds[place])
            if first < last:  # else the row ends within the prefix
                pieces.append(Piece(self.source, int(self.ranges.document[chosen]), first, last))
        return tuple(pieces)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """One epoch's order.

    Attributes:
        rows: which row comes when, int64 [epoch_rows].
        ranges: of long rows, where the first window of each range begins; of short rows, the order of the ranges.
        bounds: of long rows the running count of windows, of short ones that of tokens in the epoch's order.
    """

    rows: NDArray[np.int64]
    ranges: NDArray[np.int64]
    bounds: NDArray[np.int64]


def long_pool(ranges: Ranges, size: int, source: int, tag: int) -> Pool:
    """Windows of `size` tokens; each range has at least that many."""
    windows = ranges.lengths // size
    assert (windows > 0).all()
    bounds = _running(windows)
    return Pool("long", ranges, size, source, tag, bounds, int(bounds[-1]))


def short_pool(ranges: Ranges, size: int, source: int, tag: int) -> Pool:
    """Documents one after another, cut every `size` tokens."""
    assert size > 0
    costs = ranges.lengths + len(ranges.cache.header.prefix)
    bounds = _running(costs)
    return Pool("short", ranges, size, source, tag, bounds, -(-int(bounds[-1]) // size))


def _running(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
