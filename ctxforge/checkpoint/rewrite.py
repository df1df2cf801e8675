"""Write a safetensors file as a stream: header first, then the tensors in blocks; memory doesn't grow with the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ctxforge.checkpoint.dtypes import tensor_bytes
from ctxforge.checkpoint.header import build_header
from ctxforge.checkpoint.staging import FILE_MODE
from ctxforge.errors import InternalError

STREAM_BLOCK = 16 * 1024 * 1024
"""Largest piece that is written at once, in bytes."""

PT_METADATA = {"format": "pt"}
"""What older loaders require in `__metadata__`."""

TensorSpec = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype and shape."""


def write_safetensors_stream(
    path: Path,
    infos: Sequence[TensorSpec],
    open_bytes: Callable[[str], Iterable[bytes | memoryview]],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a new safetensors file, tensor by tensor in the order of `infos`.

    Args:
        path: the file to make; it must not exist.
        infos: name, dtype and shape of every tensor.
        open_bytes: called with a tensor's name when its turn comes; gives its little-endian data in pieces.
        metadata: the `__metadata__`; {"format": "pt"} by default.

    Returns:
        The size of the file in bytes.

    Raises:
        InternalError: `open_bytes` gave another number of bytes than shape and dtype say.
        OSError: writing failed.
    """
    sized = [(name, dtype, shape, _size(name, dtype, shape)) for name, dtype, shape in infos]
    header = build_header(sized, PT_METADATA if metadata is None else metadata)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        _write_all(file, header)
        for name, _, _, expected in sized:
            written = 0
            for piece in open_bytes(name):
                view = memoryview(piece).cast("B")
                for start in range(0, len(view), STREAM_BLOCK):
                    _write_all(file, view[start : start + STREAM_BLOCK])
                written += len(view)
            if written != expected:
                raise InternalError(f"{name} gave {written} bytes instead of {expected}.", "Please report this.")
    finally:
        os.close(file)
    return len(header) + sum(item[3] for item in sized)


def _size(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    size = tensor_bytes(dtype, shape, limit=2**60)
    if size is None:
        raise InternalError(
            f"{name} with shape {shape} is not a whole number of bytes in {dtype}.", "Please report this."
        )
    return size


def _write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
