"""Contents, by their sha256: in memory when they came as bytes, by reference when they are files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

CHUNK = 1 << 20
"""Bytes read, hashed or sent at a time."""

LFS_ABOVE = 5_000_000
"""A file of more bytes than this is an LFS file whatever its name."""

_LFS_SUFFIXES = (
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".gguf", ".gz", ".h5", ".joblib", ".model", ".msgpack", ".npy"),
    *(".npz", ".onnx", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".tflite"),
    *(".tgz", ".wasm", ".xz", ".zip", ".zst"),
)
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES).encode()
"""What a new repository's first commit holds, as on the Hub."""


@dataclass(frozen=True)
class File:
    """One file of one commit.

    Attributes:
        size: bytes of the content (not of an LFS pointer).
        sha256: of the content, hexadecimal.
        lfs: whether git holds a pointer to it.
        xet_hash: what a server-side copy needs; None on a regular file and in a repository without Xet storage.
        oid: git's sha1: of the blob, or of the pointer.
    """

    size: int
    sha256: str
    lfs: bool
    xet_hash: str | None
    oid: str


@dataclass(frozen=True)
class Blob:
    """A content: `data`, or the file at `path`."""

    sha256: str
    size: int
    data: bytes | None = None
    path: Path | None = None

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, never more than CHUNK of them in memory."""
        if self.data is not None:
            yield self.data[start:stop]
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(start)
            while start < stop and (part := file.read(min(CHUNK, stop - start))):
                start += len(part)
                yield part

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes from `start` up to `stop` at once."""
        return b"".join(self.chunks(start, self.size if stop is None else stop))


class Blobs:
    """Every content that the server knows, in `folder` where it isn't in memory or somewhere else on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs: dict[str, Blob] = {}
        self._lock = Lock()
        self._serial = 0
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._blobs

    def __getitem__(self, sha256: str) -> Blob:
        return self._blobs[sha256]

    def add_bytes(self, data: bytes) -> Blob:
        """Keep `data` in memory."""
        return self._keep(Blob(hashlib.sha256(data).hexdigest(), len(data), data=data))

    def add_path(self, path: Path, sha256: str | None) -> Blob:
        """Refer to a file by a hard link (by its own path where links are impossible); read only to hash it.

        With `sha256` given it is believed and nothing is read: an 8 GB sparse file costs nothing.
        """
        digest = sha256 or _hash(path)
        target = self.staging_path()
        try:
            os.link(path, target)
        except OSError:
            target = path.resolve()
        return self._keep(Blob(digest, path.stat().st_size, path=target))

    def add_upload(self, path: Path, sha256: str) -> Blob:
        """Take over a file that was written at a `staging_path` and hashed on the way."""
        return self._keep(Blob(sha256, path.stat().st_size, path=path))

    def staging_path(self) -> Path:
        """A path of its own in the server's folder."""
        with self._lock:
            self._serial += 1
            return self._folder / f"object-{self._serial:06d}"

    def _keep(self, blob: Blob) -> Blob:
        with self._lock:
            return self._blobs.setdefault(blob.sha256, blob)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps this file in LFS: by name, by size, or as binary (a NUL in its first 512 bytes).

    Empty files never are (huggingface_hub/_commit_api.py, `_fetch_upload_modes`).
    """
    return size > 0 and (path.endswith(_LFS_SUFFIXES) or size > LFS_ABOVE or b"\0" in sample[:512])


def git_file(blob: Blob, lfs: bool, xet: bool) -> File:
    """How a commit refers to a content (pointer format: git-lfs, docs/spec.md)."""
    if lfs:
        body = f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.sha256}\nsize {blob.size}\n".encode()
    else:
        body = blob.read()
    oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    return File(blob.size, blob.sha256, lfs, xet_hash(blob.sha256) if lfs and xet else None, oid)


def xet_hash(sha256: str) -> str:
    """A stand-in for Xet's own hash: 64 hexadecimal digits that depend on the content alone."""
    return hashlib.sha256(b"xet" + bytes.fromhex(sha256)).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
