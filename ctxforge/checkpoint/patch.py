"""Edit tensors in place: same shape, same dtype, same bytes around them, a few megabytes in memory at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedError, UsageError
from .dtypes import DTYPE_BITS, EDITABLE_DTYPES
from .files import BLOCK, descriptor_sha256, pread_exact
from .jsonio import ascii_name
from .materialise import pwrite_all
from .types import ScaleRows, TensorInfo

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    Array = NDArray[floating[Any]]


@dataclass(frozen=True)
class Patch:
    """All edits of one tensor, as (first row, one past the last row, factor, offset), disjoint and in order."""

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


def plan_patches(edits: Iterable[ScaleRows], tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[Patch, ...]]:
    """Check tensor edits against the checkpoint and group them by file.

    Raises:
        UsageError: no such tensor, rows out of range or named twice, or a factor that isn't finite.
        UnsupportedError: a quantised, packed or integer tensor.
    """
    pieces: dict[str, list[tuple[int, int, float, float]]] = {}
    for edit in edits:
        info = tensors.get(edit.tensor)
        if info is None:
            raise UsageError(
                f"There is no tensor {ascii_name(edit.tensor)} to edit.", "Check the name with `ctxforge inspect`."
            )
        if info.dtype not in EDITABLE_DTYPES:
            raise UnsupportedError(
                f"The tensor {ascii_name(edit.tensor)} has dtype {info.dtype}, which cannot be scaled without error.",
                "Use the unquantised checkpoint, or options that leave the weights alone.",
            )
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
    files: dict[str, list[Patch]] = {}
    for name, parts in pieces.items():
        parts.sort()
        if any(after[0] < before[1] for before, after in pairwise(parts)):
            raise UsageError(
                f"Some rows of {ascii_name(name)} are edited twice, which would round twice.", "Combine the factors."
            )
        files.setdefault(tensors[name].file, []).append(Patch(tensors[name], tuple(parts)))
    return {file: tuple(sorted(found, key=lambda patch: patch.info.start)) for file, found in files.items()}


def apply_patch(file: int, patch: Patch) -> str:
    """Edit one tensor of an open shard in place and give the SHA-256 of its whole new data.

    Args:
        file: a descriptor open for reading and writing, of a private copy of the shard.
        patch: the tensor and its edits.

    Raises:
        CheckpointError: a finite weight would overflow its dtype.
        OSError: reading or writing failed.
    """
    width = DTYPE_BITS[patch.info.dtype] // 8
    for first, last, factor, offset in patch.pieces:
        position = patch.info.start + first * patch.row_bytes
        end = patch.info.start + last * patch.row_bytes
        while position < end:
            # Half of BLOCK: the float32 or float64 copies of a 16-bit block are two to four times as large.
            data = pread_exact(file, min(BLOCK // 2 // width * width, end - position), position, patch.info.file)
            pwrite_all(file, scale_block(data, patch.info.dtype, factor, offset, patch.info.name), position)
            position += len(data)
    return descriptor_sha256(file, patch.info.start, patch.info.end)


def scale_block(data: bytes, dtype: str, factor: float, offset: float, name: str) -> bytes:
    """`factor * (w + offset) - offset` for little-endian elements of `dtype`, rounded once to it, nearest even.

    Raises:
        CheckpointError: a finite element becomes infinite.
    """
    import numpy as np

    values = decode(data, dtype)
    wide: Any = values.astype(np.float64 if offset or dtype in ("F32", "F64") else np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # A Python scalar takes the array's precision (NEP 50), as a torch scalar does.
        result: Array = factor * (wide + offset) - offset if offset else wide * factor
        out = encode(result, dtype)
        if not np.isfinite(result).all() or not np.isfinite(decode(out, dtype)).all():
            lost = np.isfinite(values) & ~np.isfinite(decode(out, dtype))
            if lost.any():
                raise CheckpointError(
                    f"Scaling {ascii_name(name)} by {factor:g} overflows {dtype}.",
                    "Convert the checkpoint to BF16 or F32 first, or use options that leave the weights alone.",
                )
    return out


def decode(data: bytes, dtype: str) -> Array:
    """The elements of little-endian `data` as a numpy array of a native float type; exact for all editable dtypes."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])


def encode(values: Array, dtype: str) -> bytes:
    """`values` rounded to `dtype`, nearest even, as little-endian bytes."""
    import numpy as np

    if dtype != "BF16":
        return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
    bits = values.astype("<f4").view("<u4")
    # Adding half an ulp, less one where the kept part is even, carries exactly when the nearest-even value is above.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        # The carry could turn a NaN into an infinity or wrap it to zero: keep its top bits and make it quiet.
        rounded[nan] = ((bits[nan] >> np.uint32(16)) | np.uint32(0x0040)).astype("<u2")
    return rounded.tobytes()


def read_tensor_bytes(root: str | os.PathLike[str], info: TensorInfo) -> bytes:
    """The whole data of one tensor of the local checkpoint `root`, little-endian.

    Raises:
        CheckpointError: the file is missing or too short.
        ResourceError: it can't be read.
    """
    from pathlib import Path

    from .files import open_regular, reading

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
