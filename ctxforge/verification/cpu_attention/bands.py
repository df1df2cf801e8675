"""Bands: for each block of rows, the keys that a mask rule lets it see, and the mask where one is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ctxforge.errors import UnsupportedError

# Rows of a block with a mask. More rows compute more masked scores of a window's band; fewer make small products.
BAND_ROWS = 256

MaskFunction = Callable[..., torch.Tensor]
_REMEDY = "Use the model's stock attention."


@dataclass(frozen=True)
class Band:
    """Rows [rows] attend to keys [keys]: to the first `open` of them all, to the others as `mask` says.

    `mask` is boolean [rows, keys - open], or None where nothing is masked.
    """

    rows: slice
    keys: slice
    open: int
    mask: torch.Tensor | None

    def whole(self) -> torch.Tensor | None:
        """The mask over all keys of the band: boolean [rows, keys]."""
        return None if self.mask is None else F.pad(self.mask, (self.open, 0), value=True)


def plan(allowed: MaskFunction, length: int, batch: int = 1) -> list[Band]:
    """The bands of a mask rule of transformers over `length` rows and as many keys.

    Raises:
        UnsupportedError: the sequences of the batch differ in what they may see, or a row may see nothing.
    """
    at = torch.arange(length)
    sequence = torch.arange(batch).view(batch, 1, 1, 1)
    bands: list[Band] = []
    for start in range(0, length, BAND_ROWS):
        rows = slice(start, min(start + BAND_ROWS, length))
        each = allowed(sequence, torch.zeros(1, 1, 1, 1).long(), at[rows].view(1, 1, -1, 1), at.view(1, 1, 1, -1))
        each = each.expand(batch, 1, rows.stop - start, length)[:, 0]
        mask = each[0]
        if batch > 1 and not bool((each == mask).all()):
            raise UnsupportedError("the sequences of this batch have masks of their own.", _REMEDY)
        if not bool(mask.any(1).all()):
            raise UnsupportedError("a token of this input may attend to nothing.", _REMEDY)
        seen = mask.any(0).nonzero()
        keys = slice(int(seen[0]), int(seen[-1]) + 1)
        bands.append(_trimmed(rows, keys, mask[:, keys], bands[-1].mask if bands else None))
    return bands


def _trimmed(rows: slice, keys: slice, mask: torch.Tensor, previous: torch.Tensor | None) -> Band:
    partial = (~mask.all(0)).nonzero()
    if not len(partial):
        return Band(rows, keys, keys.stop - keys.start, None)
    start = int(partial[0])
    rest = mask[:, start:]
    # A window's mask is the same in every block but the first few: one copy serves all.
    same = previous is not None and torch.equal(previous, rest)
    return Band(rows, keys, start, previous if same else rest.clone())


def causal_bands(length: int) -> Iterator[Band]:
    """The bands of plain causal attention, made as they are asked for."""
    corner = torch.ones(BAND_ROWS, BAND_ROWS, dtype=torch.bool).tril()
    for start in range(0, length, BAND_ROWS):
        stop = min(start + BAND_ROWS, length)
        yield Band(slice(start, stop), slice(0, stop), start, corner[: stop - start, : stop - start])


def runs(bands: Sequence[Band]) -> Iterator[list[Band]]:
    """Consecutive bands that are one another shifted: of one shape and mask, as far apart in keys as in rows.

    A call into the kernel then serves them all. The bands from the first on that are plainly causal are a run too.
    """
    run: list[Band] = []
    for band in bands:
        causal = bool(run) and is_causal(run)
        more = (causal and _is_triangle(band)) or (
            bool(run) and _continues(run, band) and not (causal and len(run) > 1)
        )
        if run and not more:
            yield run
            run = []
        run.append(band)
    if run:
        yield run


def is_causal(run: Sequence[Band]) -> bool:
    """Whether a run of `runs` is causal attention from the first row on."""
    # Bands that are one another shifted see no first key but in their first: the ends tell.
    return run[0].rows.start == 0 and _is_triangle(run[0]) and _is_triangle(run[-1])


def _is_triangle(band: Band) -> bool:
    """Whether these rows see every key up to their own."""
    count = band.rows.stop - band.rows.start
    # The triangle's first column is open to all its rows.
    if band.keys != slice(0, band.rows.stop) or band.open != band.rows.start + 1:
        return False
    if band.mask is None:
        return bool(count == 1)
    triangle = torch.ones(count, count, dtype=torch.bool).tril_()
    return bool(torch.equal(band.mask, triangle[:, 1:]))


def _continues(run: Sequence[Band], band: Band) -> bool:
    last = run[-1]
    step = band.rows.start - last.rows.start
    return (
        last.mask is band.mask
        and last.open == band.open
        and last.keys.start + step == band.keys.start
        and last.keys.stop + step == band.keys.stop
        and last.rows.stop - last.rows.start == band.rows.stop - band.rows.start
    )
