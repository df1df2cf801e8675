"""The header of a safetensors file: parse it strictly, build it, never touch the data.

The format is an unsigned little-endian 64-bit length N, N bytes of JSON that begin with "{", then one contiguous buffer
(safetensors README, "Format"). Checked here as in the Rust reader: no hole, no overlap, the last offset is the end of
the file; on top of it, a key twice is refused where the Rust reader silently keeps the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctxforge.checkpoint.dtypes import DTYPE_BITS, tensor_bytes
from ctxforge.checkpoint.files import open_regular, pread_exact, reading
from ctxforge.checkpoint.jsonio import MAX_INT, DuplicateKeyError, ascii_name, unique_object
from ctxforge.checkpoint.types import TensorInfo
from ctxforge.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""Largest header that the safetensors library accepts."""

_REMEDY = "Download or copy this file again; its size and checksum should match the original's."


@dataclass(frozen=True)
class Header:
    """A parsed header: the tensors in order of offset, the `__metadata__`, and the length N of the JSON in bytes."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    length: int


def header_length(prefix: bytes, name: str, size: int) -> int:
    """The length N of the JSON, from the first 8 bytes of a file of `size` bytes.

    Raises:
        CheckpointError: the file is too short, or N is beyond the file or the format's limit.
    """
    if len(prefix) < 8 or size < 8:
        raise CheckpointError(f"{name} has {size} bytes: too short for a safetensors file.", _REMEDY)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{name} is not a safetensors file, or is damaged: its header would have {length} bytes.", _REMEDY
        )
    if length + 8 > size:
        raise CheckpointError(f"{name} is truncated: its header has {length} bytes, but the file only {size}.", _REMEDY)
    return length


def parse_header(data: bytes, name: str, size: int) -> Header:
    """Parse the JSON of a header.

    Args:
        data: the N bytes after the length.
        name: the file's name relative to the checkpoint root.
        size: size of the whole file in bytes.

    Raises:
        CheckpointError: anything that the format forbids, naming the file and the tensor.
    """
    entries = _load(data, name)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise CheckpointError(f"{name} has a __metadata__ that is not a map of strings.", _REMEDY)
    base = 8 + len(data)
    tensors = sorted(
        (_tensor(key, entry, name, base, size) for key, entry in entries.items()), key=lambda t: (t.start, t.end)
    )
    expected = base
    for tensor in tensors:
        if tensor.start != expected:
            what = "overlaps the tensor before it" if tensor.start < expected else "leaves a gap before it"
            raise CheckpointError(f"{name}: tensor {ascii_name(tensor.name)} {what} in the file.", _REMEDY)
        expected = tensor.end
    if expected != size:
        what = "truncated" if size < expected else "longer than its header says"
        raise CheckpointError(f"{name} is {what}: {size} bytes, expected {expected}.", _REMEDY)
    return Header(tuple(tensors), metadata, len(data))


def _load(data: bytes, name: str) -> dict[str, object]:
    if data[:1] != b"{":
        raise CheckpointError(f"{name} is not a safetensors file: its header is not a JSON object.", _REMEDY)
    try:
        entries = json.loads(data.decode("utf-8"), object_pairs_hook=unique_object)
    except DuplicateKeyError as error:
        raise CheckpointError(f"{name} has the key {ascii_name(str(error))} twice in its header.", _REMEDY) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{name} has a header that is not valid JSON.", _REMEDY) from None
    if not isinstance(entries, dict):  # unreachable after the first-byte check; keeps the type honest
        raise CheckpointError(f"{name} has a header that is not a JSON object.", _REMEDY)
    return entries


def _sizes(value: object) -> bool:
    """Whether it is a list of sizes; JSON gives exact types, and a bool is none."""
    if type(value) is not list:
        return False
    for item in value:  # noqa: SIM110  a generator for each of 45 000 tensors takes twice as long
        if type(item) is not int or not 0 <= item <= MAX_INT:
            return False
    return True


def _tensor(key: str, entry: object, name: str, base: int, size: int) -> TensorInfo:
    """One header entry, checked on its own: fields, dtype, and shape against byte range."""
    problem = _problem(entry, base, size)
    if problem is not None:
        raise CheckpointError(f"{name}: tensor {ascii_name(key)} {problem}.", _REMEDY)
    assert isinstance(entry, dict)
    start, end = entry["data_offsets"]
    return TensorInfo(key, entry["dtype"], tuple(entry["shape"]), name, base + start, base + end)


def _problem(entry: object, base: int, size: int) -> str | None:
    """What is wrong with one entry; a model has tens of thousands, so nothing is worded before something is."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "lacks dtype, shape or data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"has the unknown dtype {ascii_name(str(dtype), 40)}"
    if not _sizes(shape):
        return "has a shape that is not a list of sizes"
    if not _sizes(offsets) or len(offsets) != 2:
        return "has data_offsets that are not two positions"
    start, end = offsets
    if end < start or base + end > size:
        return f"ends at byte {base + end}, but the file has {size} bytes"
    if tensor_bytes(dtype, tuple(shape), limit=end - start) != end - start:
        return f"has a shape and dtype that do not fit its {end - start} bytes"
    return None


def read_header(path: Path, name: str) -> Header:
    """Read the header of a local file; the data is not touched.

    Raises:
        CheckpointError: the file is damaged.
        ResourceError: the file can't be read.
    """
    with open_regular(path, name) as file, reading(name):
        size = os.fstat(file).st_size
        length = header_length(pread_exact(file, min(8, size), 0, name), name, size)
        return parse_header(pread_exact(file, length, 8, name), name, size)


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The length and JSON for tensors given as (name, dtype, shape, bytes), laid out in that order without gaps.

    The JSON is padded with spaces so that the data starts at a multiple of 8, as the library's own writer does.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    data = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data
