"""Edit tensors as bytes: the bytes around them stay, a few megabytes are in memory at a time.

`ScaleRows` keeps shape and place. `ResampleRows` changes the number of rows, hence the header and the place of all that
follows (`ctxforge.checkpoint.relayout`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.checkpoint.dtypes import EDITABLE_DTYPES
from ctxforge.checkpoint.elements import decode, encode
from ctxforge.checkpoint.files import open_regular, pread_exact, reading
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.checkpoint.materialise import Rewrite, pwrite_all
from ctxforge.checkpoint.resample import Resampling, plan_resampling
from ctxforge.checkpoint.types import ResampleRows, TensorEdit, TensorInfo
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from ctxforge.checkpoint.elements import Array

SCALE_BLOCK = 512 * 1024
"""Bytes scaled at once: small enough that the float32 copies stay in the processor's cache (4 times faster)."""


@dataclass(frozen=True)
class Patch:
    """The scalings of one tensor, as (first row, one past the last row, factor, offset), disjoint and in order."""

    info: TensorInfo
    pieces: tuple[tuple[int, int, float, float], ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of dimension 0; of the whole tensor for a scalar."""
        return self.info.nbytes // self.info.shape[0] if self.info.shape else self.info.nbytes

    @property
    def edited_bytes(self) -> int:
        """Bytes that the edits replace."""
        return sum((stop - start) * self.row_bytes for start, stop, _, _ in self.pieces)

    @property
    def result(self) -> TensorInfo:
        """The tensor as it becomes: the same but for its data."""
        return self.info

    def rewrites(self) -> Iterator[Rewrite]:
        """The edited ranges of the tensor's file, each with what writes it."""
        for first, last, factor, offset in self.pieces:
            start = self.info.start + first * self.row_bytes
            stop = self.info.start + last * self.row_bytes
            if start < stop:
                yield Rewrite(start, stop, partial(_scale_range, self.info, start, stop, factor, offset))


TensorPatch = Patch | Resampling
"""All edits of one tensor."""


def plan_patches(edits: Iterable[TensorEdit], tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[TensorPatch, ...]]:
    """Check tensor edits against the checkpoint and group them by file.

    Raises:
        UsageError: no such tensor, rows out of range or edited twice, or a factor that isn't finite.
        UnsupportedError: a quantised, packed or integer tensor.
    """
    pieces: dict[str, list[tuple[int, int, float, float]]] = {}
    resampled: dict[str, Resampling] = {}
    for edit in edits:
        info = _editable(edit, tensors)
        if isinstance(edit, ResampleRows):
            if edit.tensor in resampled:
                raise _edited_twice(edit.tensor)
            resampled[edit.tensor] = plan_resampling(edit, info)
            continue
        if not (math.isfinite(edit.factor) and math.isfinite(edit.offset)):
            raise UsageError(f"The factor for {ascii_name(edit.tensor)} is not finite.", "Give a finite factor.")
        count = info.shape[0] if info.shape else 1
        for start, stop in ((0, count),) if edit.rows is None else edit.rows:
            if not 0 <= start <= stop <= count:
                raise UsageError(
                    f"Rows {start} to {stop} of {ascii_name(edit.tensor)} do not exist: it has {count}.",
                    "Give ranges within the tensor's first dimension.",
                )
            pieces.setdefault(edit.tensor, []).append((start, stop, float(edit.factor), float(edit.offset)))
    files: dict[str, list[TensorPatch]] = {}
    for patch in resampled.values():
        files.setdefault(patch.info.file, []).append(patch)
    for name, parts in pieces.items():
        parts.sort()
        if name in resampled or any(after[0] < before[1] for before, after in pairwise(parts)):
            raise _edited_twice(name)
        files.setdefault(tensors[name].file, []).append(Patch(tensors[name], tuple(parts)))
    return {file: tuple(sorted(found, key=lambda patch: patch.info.start)) for file, found in files.items()}


def _editable(edit: TensorEdit, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    """The tensor that an edit names, if its elements can be computed with."""
    info = tensors.get(edit.tensor)
    if info is None:
        raise UsageError(
            f"There is no tensor {ascii_name(edit.tensor)} to edit.", "Check the name with `ctxforge inspect`."
        )
    if info.dtype not in EDITABLE_DTYPES:
        done = "interpolated" if isinstance(edit, ResampleRows) else "scaled"
        raise UnsupportedError(
            f"The tensor {ascii_name(edit.tensor)} has dtype {info.dtype}, which cannot be {done} without error.",
            "Use the unquantised checkpoint, or options that leave the weights alone.",
        )
    return info


def _edited_twice(name: str) -> UsageError:
    return UsageError(
        f"Some rows of {ascii_name(name)} are edited twice, which would round twice.", "Combine the edits into one."
    )


def _scale_range(
    info: TensorInfo, start: int, stop: int, factor: float, offset: float, reader: int, writer: int, shift: int
) -> None:
    """Write the scaled elements of one range of the file `reader` to `writer`, `shift` bytes farther on."""
    for position in range(start, stop, SCALE_BLOCK):
        with reading(info.file):
            data = pread_exact(reader, min(SCALE_BLOCK, stop - position), position, info.file)
        pwrite_all(writer, scale_block(data, info.dtype, factor, offset, info.name), position + shift)


_LIMITS = {"F64": 1.7e308, "F32": 3.4028235e38, "F16": 65519.0, "BF16": 3.395e38}
"""Magnitudes below which rounding to the dtype can't give an infinity; above them, each element is looked at."""


def scale_block(data: bytes, dtype: str, factor: float, offset: float, name: str) -> bytes:
    """`factor * (w + offset) - offset` for little-endian elements of `dtype`, rounded once to it, nearest even.

    Raises:
        CheckpointError: a finite element becomes infinite.
    """
    import numpy as np

    result: Any = decode(data, dtype).astype(np.float64 if offset or dtype in ("F32", "F64") else np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # In place, since memory traffic is the cost. A Python scalar takes the array's precision (NEP 50), as in torch.
        if offset:
            result += offset
        result *= factor
        if offset:
            result -= offset
        suspect = result.size and not (-_LIMITS[dtype] < result.min() and result.max() < _LIMITS[dtype])
        out = encode(result, dtype)
        if suspect and (np.isfinite(decode(data, dtype)) & ~np.isfinite(decode(out, dtype))).any():
            raise CheckpointError(
                f"Scaling {ascii_name(name)} by {factor:g} overflows {dtype}.",
                "Convert the checkpoint to BF16 or F32 first, or use options that leave the weights alone.",
            )
    return out


def read_tensor_bytes(root: str | os.PathLike[str], info: TensorInfo) -> bytes:
    """The whole data of one tensor of the local checkpoint `root`, little-endian.

    Raises:
        CheckpointError: the file is missing or too short.
        ResourceError: it can't be read.
    """
    with open_regular(Path(root) / info.file, info.file) as file, reading(info.file):
        return pread_exact(file, info.nbytes, info.start, info.file)


def read_tensor(root: str | os.PathLike[str], info: TensorInfo) -> Array:
    """One F64, F32, F16 or BF16 tensor of the local checkpoint `root` as a numpy array (BF16 as float32).

    Raises:
        UnsupportedError: any other dtype.
        CheckpointError: the file is missing or too short.
        ResourceError: it can't be read.
    """
    if info.dtype not in EDITABLE_DTYPES:
        raise UnsupportedError(
            f"The tensor {ascii_name(info.name)} has dtype {info.dtype}.", "Use the unquantised checkpoint."
        )
    return decode(read_tensor_bytes(root, info), info.dtype).reshape(info.shape)
