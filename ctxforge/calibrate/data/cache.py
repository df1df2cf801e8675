"""A source's tokens on disk, read through the page cache without copies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.header import HASHES, OFFSETS, SPANS, TOKENS, CacheHeader, DamagedCacheError, load_header
from ctxforge.errors import UsageError
from ctxforge.lengths import format_length

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, eq=False)
class TokenCache:
    """The documents of one source as token ids.

    Attributes:
        folder: where it is.
        header: what it says about itself.
        tokens: all ids, documents one after another, memory-mapped, uint16 or uint32 [tokens].
        offsets: document i is tokens[offsets[i]:offsets[i + 1]], int64 [documents + 1].
        hashes: 64 bits of the SHA-256 of each document's text, uint64 [documents].
        spans: of chats, the ranges of `tokens` that the assistant wrote, in order, int64 [ranges, 2].
    """

    folder: Path
    header: CacheHeader
    tokens: Tokens
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    spans: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> TokenCache:
        """Open a cache. The tokens are mapped and not read; sizes and the small files' digests are checked.

        Raises:
            DamagedCacheError: not whole. `check` also reads the tokens.
        """
        header = load_header(folder)
        offsets = _small(folder, OFFSETS, header, "<i8").astype(np.int64, copy=False)
        hashes = _small(folder, HASHES, header, "<u8").astype(np.uint64, copy=False)
        spans = _small(folder, SPANS, header, "<i8").astype(np.int64, copy=False).reshape(-1, 2)
        if len(offsets) != header.documents + 1 or offsets[-1] != header.tokens or len(hashes) != header.documents:
            raise DamagedCacheError(f"{folder} has other documents than its header says")
        dtype = np.dtype(header.dtype).newbyteorder("<")
        tokens = np.memmap(folder / TOKENS, dtype=dtype, mode="r", shape=(header.tokens,))
        return cls(folder, header, tokens.view(np.ndarray), offsets, hashes, spans)

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self.offsets)

    def document(self, index: int) -> Tokens:
        """The ids of one document: a read-only view into the mapped file, uint16 or uint32 [tokens]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def assistant_spans(self, index: int) -> NDArray[np.int64] | None:
        """The ranges of a chat's own tokens that the assistant wrote, int64 [ranges, 2]; None for plain text."""
        if not self.header.chat:
            return None
        start, stop = self.offsets[index], self.offsets[index + 1]
        first, last = np.searchsorted(self.spans[:, 0], [start, stop])
        relative: NDArray[np.int64] = self.spans[first:last] - start
        return relative

    def long_documents(self, length: int) -> NDArray[np.int64]:
        """The documents of at least `length` tokens, int64, ascending."""
        return np.flatnonzero(self.lengths >= length)

    def check(self) -> None:
        """Read everything and compare it with the digests.

        Raises:
            DamagedCacheError: a byte changed.
        """
        for name, told in self.header.files.items():
            with (self.folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != told.sha256:
                    raise DamagedCacheError(f"{self.folder / name} was changed")


def require_length(caches: Sequence[TokenCache], length: int) -> None:
    """Refuse data in which no document has `length` tokens, the tokenizer's prefix included.

    Raises:
        UsageError: it names the number of documents, the longest, and a length that would fit.
    """
    reach = max((cache.header.longest + len(cache.header.prefix) for cache in caches), default=0)
    if reach >= length:
        return
    count = sum(len(cache) for cache in caches)
    fits = 1 << (reach.bit_length() - 1) if reach else 0
    many = sum(len(cache.long_documents(fits - len(cache.header.prefix))) for cache in caches) if fits else 0
    raise UsageError(
        f"the data has {count} documents, the longest of {reach} tokens, and none reaches {length}",
        f"give longer documents, or train at {format_length(fits)}, which {many} of them reach",
    )


def _small(folder: Path, name: str, header: CacheHeader, dtype: str) -> NDArray[Any]:
    told = header.files.get(name)
    try:
        data = (folder / name).read_bytes() if told else b""
    except OSError as error:
        raise DamagedCacheError(f"{folder / name} cannot be read: {error}") from error
    if told and hashlib.sha256(data).hexdigest() != told.sha256:
        raise DamagedCacheError(f"{folder / name} was changed")
    return np.frombuffer(data, dtype=dtype)
