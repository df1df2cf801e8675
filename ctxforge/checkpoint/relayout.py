"""Where tensors go when one of a file's tensors changes its size: the new header, the new index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.dtypes import DTYPE_BITS
from ctxforge.checkpoint.header import Header, build_header, read_header
from ctxforge.checkpoint.jsonio import ascii_name, dump_json_like
from ctxforge.checkpoint.layout import INDEX
from ctxforge.checkpoint.local import read_json
from ctxforge.checkpoint.materialise import Rewrite, pwrite_all
from ctxforge.checkpoint.patch import TensorPatch
from ctxforge.checkpoint.types import TensorInfo
from ctxforge.errors import UnsupportedError


def growth(patches: Sequence[TensorPatch]) -> int:
    """How many bytes more than before the patched tensors have together."""
    return sum(patch.result.nbytes - patch.info.nbytes for patch in patches)


def moves(patches: Sequence[TensorPatch]) -> bool:
    """Whether a tensor changes its shape, so that the file needs another header."""
    return any(patch.result.shape != patch.info.shape for patch in patches)


def file_rewrites(path: Path, name: str, patches: Sequence[TensorPatch]) -> list[Rewrite]:
    """All that changes in the weight file `path` (`name` in messages), in order, the header included.

    Raises:
        CheckpointError: the header is damaged.
        UnsupportedError: a tensor would come to lie where it can't be mapped.
        ResourceError: the file can't be read.
    """
    found = [rewrite for patch in patches for rewrite in patch.rewrites()]
    if not moves(patches):
        return found
    old = read_header(path, name)
    data = build_header(
        [(info.name, info.dtype, info.shape, info.nbytes) for info in relayout(old, patches)], old.metadata
    )
    length = 8 + old.length
    return [Rewrite(0, length, partial(_write_header, data), len(data) - length), *found]


def _write_header(data: bytes, _reader: int, writer: int, _shift: int) -> None:
    pwrite_all(writer, data, 0)


def relayout(header: Header, patches: Sequence[TensorPatch]) -> list[TensorInfo]:
    """The tensors of a file in their order, with their new shapes and places; offsets count from the data's start.

    Raises:
        UnsupportedError: a tensor that began at a multiple of its element's size would no longer do so, which is what
            loaders that map the file rely on. It takes an odd number of 16-bit elements before a wider tensor.
    """
    results = {patch.info.name: patch.result for patch in patches}
    base = 8 + header.length
    placed: list[TensorInfo] = []
    end = 0
    for info in header.tensors:
        result = results.get(info.name, info)
        width = max(1, DTYPE_BITS[info.dtype] // 8)
        if end % width and not (info.start - base) % width:
            raise UnsupportedError(
                f"In {info.file}, the tensor {ascii_name(info.name)} would come to lie at an odd place.",
                "Choose a target length whose difference to the trained length is a multiple of 8.",
            )
        placed.append(replace(result, start=end, end=end + result.nbytes))
        end += result.nbytes
    return placed


def reindexed(root: Path, tensors: Mapping[str, TensorInfo], patches: Sequence[TensorPatch]) -> bytes:
    """The index of the checkpoint in `root`, its totals corrected, in the style of the old one.

    Raises:
        CheckpointError: the index is gone or malformed.
    """
    index, text = read_json(root, INDEX)
    metadata = index.get("metadata")
    if not isinstance(metadata, dict):
        return text.encode()
    changed: dict[str, Any] = dict(metadata)
    if "total_size" in changed:
        changed["total_size"] = sum(info.nbytes for info in tensors.values()) + growth(patches)
    if isinstance(changed.get("total_parameters"), int):
        changed["total_parameters"] += sum(patch.result.elements - patch.info.elements for patch in patches)
    return dump_json_like(text, {**index, "metadata": changed})
