"""The files of a token cache while it grows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import numpy as np

from ctxforge.calibrate.data.encode import Encoded
from ctxforge.calibrate.data.header import HASHES, OFFSETS, SPANS, TOKENS, StoredFile


class CacheWriter:
    """Appends documents; each file is hashed on its way to the disk.

    Args:
        folder: a staging folder.

    Attributes:
        documents, tokens, characters, longest: what was written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.documents = self.tokens = self.characters = self.longest = 0
        self._files = {name: _Hashed(folder / name) for name in (TOKENS, OFFSETS, HASHES, SPANS)}
        self._files[OFFSETS].write(np.zeros(1, "<i8").tobytes())

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close(quietly=kind is not None)

    def add(self, encoded: Encoded, digest: int, characters: int) -> None:
        """Append one document.

        Args:
            encoded: its ids and spans.
            digest: 64 bits that stand for its text.
            characters: of its text.
        """
        ids = encoded.ids
        self._files[TOKENS].write(ids.astype(ids.dtype.newbyteorder("<"), copy=False).tobytes())
        self._files[SPANS].write((encoded.spans + self.tokens).astype("<i8").tobytes())
        self._files[HASHES].write(digest.to_bytes(8, "little"))
        self.documents += 1
        self.tokens += len(ids)
        self.characters += characters
        self.longest = max(self.longest, len(ids))
        self._files[OFFSETS].write(self.tokens.to_bytes(8, "little"))

    def finish(self) -> dict[str, StoredFile]:
        """Close the files; their sizes and digests by name."""
        for file in self._files.values():
            file.close()
        return {name: StoredFile(file.bytes, file.digest.hexdigest()) for name, file in self._files.items()}


class _Hashed:
    def __init__(self, path: Path) -> None:
        self.bytes = 0
        self.digest = hashlib.sha256()
        self._file = path.open("xb", buffering=1 << 20)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)

    def close(self, *, quietly: bool = False) -> None:
        try:
            self._file.close()
        except OSError:  # after a failed write, closing tries to write once more
            if not quietly:
                raise
