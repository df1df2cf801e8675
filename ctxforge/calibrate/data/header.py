"""The header of a token cache: what is in it, what it was made from, and how to tell that it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Of the files and of the key; another number is another cache."""

HEADER = "header.json"
TOKENS = "tokens.bin"
OFFSETS = "offsets.bin"
HASHES = "hashes.bin"
SPANS = "spans.bin"


class DamagedCacheError(Exception):
    """A cache that isn't whole; `open_or_build` makes it anew."""


@dataclass(frozen=True)
class StoredFile:
    """A file of the cache: its bytes, and their SHA-256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CacheHeader:
    """What `header.json` says.

    Attributes:
        schema: the version of the format.
        key: SHA-256 of everything that decides about the content; the folder's name.
        source: the source as it was given: kind, location, column; a Hub data set's commit.
        content: SHA-256 of the source's content.
        tokenizer: SHA-256 of what the tokenizer does.
        vocabulary: how many ids it has.
        dtype: of the tokens: uint16 or uint32, little-endian.
        prefix: ids that the tokenizer puts before a text; not stored with the documents.
        end: the id stored behind each document, or None.
        chat: whether the documents are chats, with the spans of the assistant.
        filters: the limits that were applied.
        guard: SHA-256 of the texts that no document shares a passage with, or None.
        documents, tokens, characters: kept.
        longest: tokens of the longest document.
        dropped: documents that were not kept, by reason.
        examples: the first ids of each reason.
        files: the other files.
    """

    schema: int
    key: str
    source: Mapping[str, Any]
    content: str
    tokenizer: str
    vocabulary: int
    dtype: str
    prefix: tuple[int, ...]
    end: int | None
    chat: bool
    filters: Mapping[str, Any]
    guard: str | None
    documents: int
    tokens: int
    characters: int
    longest: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, StoredFile] = field(default_factory=dict)


def dump_header(header: CacheHeader) -> bytes:
    """The header as JSON, with its own SHA-256."""
    value = asdict(header)
    return json.dumps({**value, "sha256": _digest(value)}, indent=1, ensure_ascii=True).encode()


def load_header(folder: Path) -> CacheHeader:
    """Read the header of a cache.

    Raises:
        DamagedCacheError: missing, not whole, of another schema, or files of other sizes than it says.
    """
    try:
        value = json.loads((folder / HEADER).read_bytes())
        told = value.pop("sha256")
        files = {name: StoredFile(**one) for name, one in value["files"].items()}
        sizes = {name: (folder / name).stat().st_size for name in files}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedCacheError(f"{folder / HEADER} is not whole: {error}") from error
    if told != _digest(value):
        raise DamagedCacheError(f"{folder / HEADER} was changed")
    if value["schema"] != SCHEMA:
        raise DamagedCacheError(f"{folder} has schema {value['schema']}, not {SCHEMA}")
    for name, one in files.items():
        if sizes[name] != one.bytes:
            raise DamagedCacheError(f"{folder / name} has {sizes[name]} bytes, not {one.bytes}")
    fixed = {"prefix": tuple(value["prefix"]), "files": files}
    examples = {reason: tuple(names) for reason, names in value["examples"].items()}
    return CacheHeader(**{**value, **fixed, "examples": examples})


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
