"""Stretch a table along its rows, a block of new rows at a time; the rule is `ResampleRows`'s."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ctxforge.checkpoint.elements import decode, encode
from ctxforge.checkpoint.files import pread_exact, reading
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.checkpoint.materialise import Rewrite, pwrite_all
from ctxforge.checkpoint.types import ResampleRows, TensorInfo
from ctxforge.errors import UsageError

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

Whole = TypeVar("Whole", int, "NDArray[int64]")

RESAMPLE_BLOCK = 512 * 1024
"""Bytes of new rows made at once, and at least one row."""

_MAX_ROWS = 2**31  # p * L0 stays below 2^62


@dataclass(frozen=True)
class Resampling:
    """The stretching of one tensor, checked: of its rows after `skip`, the first `source_rows` become `rows`."""

    info: TensorInfo
    skip: int
    source_rows: int
    rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.info.nbytes // self.info.shape[0]

    @property
    def edited_bytes(self) -> int:
        """Bytes that are computed."""
        return self.rows * self.row_bytes

    @property
    def result(self) -> TensorInfo:
        """The tensor as it becomes, at the place where it is in the source."""
        count = self.skip + self.rows
        return replace(self.info, shape=(count, *self.info.shape[1:]), end=self.info.start + count * self.row_bytes)

    def rewrites(self) -> Iterator[Rewrite]:
        """The stretched rows, which take another number of bytes than the old ones."""
        start = self.info.start + self.skip * self.row_bytes
        yield Rewrite(start, self.info.end, self._write, self.result.nbytes - self.info.nbytes)

    def _write(self, reader: int, writer: int, shift: int) -> None:
        if self.row_bytes == 0:
            return
        start = self.info.start + self.skip * self.row_bytes
        step = max(1, RESAMPLE_BLOCK // self.row_bytes)
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            low, stop = needed_rows(first, last, self.source_rows, self.rows)
            with reading(self.info.file):
                data = pread_exact(reader, (stop - low) * self.row_bytes, start + low * self.row_bytes, self.info.file)
            new = resample_block(data, self.info.dtype, (first, last), self.source_rows, self.rows)
            pwrite_all(writer, new, start + first * self.row_bytes + shift)


def plan_resampling(edit: ResampleRows, info: TensorInfo) -> Resampling:
    """Check an edit against the tensor that it names.

    Raises:
        UsageError: the tensor has no rows, too few for `skip` and `source_rows`, or would get fewer than are stretched.
    """
    count = info.shape[0] if info.shape else 0
    source_rows = count - edit.skip if edit.source_rows is None else edit.source_rows
    name = ascii_name(edit.tensor)
    if edit.skip < 0 or source_rows < 1 or edit.skip + source_rows > count:
        raise UsageError(
            f"{name} has {count} rows: {edit.skip} to keep and {source_rows} to stretch do not fit.",
            "Check the tensor's shape with `ctxforge inspect`.",
        )
    if not source_rows <= edit.rows < _MAX_ROWS:
        raise UsageError(
            f"{source_rows} rows of {name} cannot be stretched to {edit.rows}.",
            f"Give a number of rows from {source_rows} to {_MAX_ROWS - 1}.",
        )
    return Resampling(info, edit.skip, source_rows, edit.rows)


def sample(new_row: Whole, source_rows: int, rows: int) -> tuple[Whole, Whole]:
    """Where new rows p are read: u = p L0/L' as (floor(u), L' times the fraction of u), exact in whole numbers.

    floor(u) is at most L0 - 1; there, whatever the fraction, the last source row is taken.
    """
    scaled = new_row * source_rows
    return scaled // rows, scaled % rows


def needed_rows(first: int, last: int, source_rows: int, rows: int) -> tuple[int, int]:
    """The half-open range of source rows that the new rows from `first` up to before `last` are made of."""
    low, _ = sample(first, source_rows, rows)
    high, part = sample(last - 1, source_rows, rows)
    return low, min(high + (part > 0), source_rows - 1) + 1


def resample_block(data: bytes, dtype: str, new_rows: tuple[int, int], source_rows: int, rows: int) -> bytes:
    """The new rows from `new_rows[0]` up to before `new_rows[1]`, as little-endian bytes.

    Args:
        data: the source rows that `needed_rows` names.
        dtype: F64, F32, F16 or BF16.
        new_rows: the half-open range to compute.
        source_rows, rows: L0 and L'.
    """
    import numpy as np

    low, stop = needed_rows(*new_rows, source_rows, rows)
    below, remainder = sample(np.arange(*new_rows, dtype=np.int64), source_rows, rows)
    exact = (remainder == 0) | (below == source_rows - 1)
    above = np.where(exact, below, below + 1)
    stored = np.frombuffer(data, np.uint8).reshape(stop - low, -1)
    values: Any = decode(data, dtype).astype(np.float64).reshape(stop - low, -1)
    with np.errstate(under="ignore", invalid="ignore"):
        # Whole numbers as weights, ((L' - r) a + r b) / L': what is halfway between two representable numbers stays so.
        mixed = values[below - low]
        mixed *= (rows - remainder)[:, None]
        upper = values[above - low]
        upper *= remainder[:, None]
        mixed += upper
        mixed /= rows
    new = np.frombuffer(encode(mixed, dtype), np.uint8).reshape(len(below), -1).copy()
    new[exact] = stored[below[exact] - low]
    return new.tobytes()
