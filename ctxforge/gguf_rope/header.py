"""GGUF headers as bytes: entries and tensor records are kept exactly as they stand, so that a copy is lossless.

The format (ggml docs/gguf.md, version 3, little-endian): magic, version, counts; entries (key, type, value); tensor
records (name, shape, type, offset); padding up to the alignment; the tensors' data, offsets counted from its start.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from ctxforge.errors import CheckpointError, UnsupportedError

MAGIC = b"GGUF"
# struct's letter of each scalar type, by the format's number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
UINT32, FLOAT32 = 4, 6
TYPE_F32 = 0
_MAX_ENTRIES = 2**16
_MAX_TENSORS = 2**20
_MAX_DIMENSIONS = 4
_DAMAGED = "convert the checkpoint again"
Value = int | float | bool | str | None


@dataclass(frozen=True)
class Entry:
    """One metadata entry: its bytes, and its value where it is a scalar or a string (None for arrays)."""

    key: str
    raw: bytes
    value: Value


@dataclass(frozen=True)
class Record:
    """One tensor's record. `offset` counts from the start of the data; `shape` is innermost first."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def raw(self) -> bytes:
        """The record as bytes."""
        return (
            _string(self.name)
            + struct.pack("<I", len(self.shape))
            + struct.pack(f"<{len(self.shape)}QIQ", *self.shape, self.type, self.offset)
        )


@dataclass(frozen=True)
class Header:
    """Everything before the data.

    Attributes:
        version: of the format.
        entries, records: in the file's order.
        size: bytes up to the start of the data, padding included.
    """

    version: int
    entries: tuple[Entry, ...]
    records: tuple[Record, ...]
    size: int

    @property
    def alignment(self) -> int:
        """What data and offsets are aligned to, in bytes."""
        value = self.value("general.alignment")
        return value if isinstance(value, int) else 32

    def value(self, key: str) -> Value:
        """The value of one entry; None where it is absent or an array."""
        return next((entry.value for entry in self.entries if entry.key == key), None)

    def dump(self) -> bytes:
        """The header as bytes, padded; `size` plays no part."""
        parts = [MAGIC, struct.pack("<IQQ", self.version, len(self.records), len(self.entries))]
        parts += [entry.raw for entry in self.entries]
        parts += [record.raw for record in self.records]
        whole = b"".join(parts)
        return whole + bytes(-len(whole) % self.alignment)


def scalar_entry(key: str, kind: int, value: float) -> Entry:
    """An entry of a scalar type."""
    return Entry(key, _string(key) + struct.pack(f"<I{_SCALARS[kind]}", kind, value), value)


def parse_header(data: bytes | mmap.mmap, name: str) -> Header:
    """The header of the GGUF file that begins with `data` (the whole file as a map, or enough of it).

    Raises:
        CheckpointError: not a GGUF file, or a damaged one.
        UnsupportedError: another version of the format, or big-endian.
    """
    cursor = _Cursor(data, name)
    if len(data) < 4 or cursor.take(4) != MAGIC:
        raise CheckpointError(f"{name} is not a GGUF file", "convert the checkpoint with llama.cpp's converter first")
    version = cursor.unpack("I")
    if version not in (2, 3):
        raise UnsupportedError(f"{name} is GGUF version {version} or big-endian; 2 and 3 can be read", _DAMAGED)
    tensors, count = cursor.unpack("Q"), cursor.unpack("Q")
    if count > _MAX_ENTRIES or tensors > _MAX_TENSORS:
        raise cursor.damaged(f"it claims {count} entries and {tensors} tensors")
    entries = tuple(_entry(cursor) for _ in range(count))
    records = tuple(_record(cursor) for _ in range(tensors))
    header = Header(version, entries, records, cursor.at)
    alignment = header.alignment
    if alignment < 8 or alignment % 8 or alignment > 2**20:
        raise cursor.damaged(f"its alignment is {alignment}")
    size = cursor.at + -cursor.at % alignment
    return Header(version, entries, records, size)


class _Cursor:
    """A position in the bytes; every step checks that the file goes that far."""

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise self.damaged("it ends early")
        self.at += count

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self.data[self.at - count : self.at]

    def unpack(self, letter: str) -> int:
        value: int = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]
        return value

    def string(self) -> str:
        try:
            return str(self.take(self.unpack("Q")), "utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a name or string is not UTF-8") from None

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: {why}", _DAMAGED)


def _entry(cursor: _Cursor) -> Entry:
    start = cursor.at
    key = cursor.string()
    kind = cursor.unpack("I")
    value: Value = None
    if kind == _STRING:
        # Undecodable strings are kept as bytes: nothing here asks for their value.
        value = cursor.take(cursor.unpack("Q")).decode("utf-8", "replace")
    elif kind == _ARRAY:
        _skip_array(cursor)
    elif kind in _SCALARS:
        value = cursor.unpack(_SCALARS[kind])
    else:
        raise cursor.damaged(f"entry {key!r:.80} has the unknown type {kind}")
    return Entry(key, cursor.data[start : cursor.at], value)


def _skip_array(cursor: _Cursor) -> None:
    kind, count = cursor.unpack("I"), cursor.unpack("Q")
    if kind == _STRING:
        for _ in range(count):
            cursor.skip(cursor.unpack("Q"))
    elif kind in _SCALARS:
        cursor.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
    else:
        raise cursor.damaged(f"an array of type {kind}")


def _record(cursor: _Cursor) -> Record:
    name = cursor.string()
    dimensions = cursor.unpack("I")
    if dimensions > _MAX_DIMENSIONS:
        raise cursor.damaged(f"tensor {name!r:.80} has {dimensions} dimensions")
    shape = tuple(cursor.unpack("Q") for _ in range(dimensions))
    return Record(name, shape, cursor.unpack("I"), cursor.unpack("Q"))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
