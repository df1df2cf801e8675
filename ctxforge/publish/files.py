"""The files of a publication: what each is to hold, where that comes from, and whether a repository has it already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ctxforge.checkpoint import file_sha256
from ctxforge.checkpoint.files import BLOCK, open_regular, read_small, reading

if TYPE_CHECKING:
    from ctxforge.checkpoint.patch import TensorPatch


_SMALL = 2_000_000
"""Local files up to so many bytes are handled in memory, weights aside."""


@dataclass(frozen=True)
class Held:
    """A file as a repository holds it.

    Attributes:
        path: its name in the repository.
        size: in bytes, of the contents.
        oid: the git blob's id; of a large file, that of its pointer.
        sha256: of the contents of a large (LFS) file; None for a regular git file.
        xet: hash under which the Hub's storage knows a large file; None where it can't be copied by it.
    """

    path: str
    size: int
    oid: str
    sha256: str | None = None
    xet: str | None = None


@dataclass(frozen=True)
class Data:
    """Contents that are in memory: what a conversion writes anew, and small files that pass through."""

    data: bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.data)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the contents."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """The id that git gives a blob of these contents."""
        return git_blob_id(self.data)


@dataclass(frozen=True)
class OnDisk:
    """Contents that are a local file, which is never changed."""

    path: Path
    size: int

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the contents; reads the file once."""
        return file_sha256(self.path)

    @property
    def is_hashed(self) -> bool:
        """Whether the digest is known already."""
        return "sha256" in vars(self)

    @cached_property
    def oid(self) -> str:
        """The id that git gives a blob of these contents; reads the file."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        name = str(self.path)
        with open_regular(self.path, name) as file, reading(name), open(file, "rb", closefd=False) as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class OnHub:
    """Contents that are a file of the source repository at its pinned commit, unchanged."""

    held: Held

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.held.size


@dataclass(frozen=True)
class Rewritten:
    """A weight file of the source with edited tensors.

    Attributes:
        source: the file before the edits.
        patches: what changes in it.
        size: in bytes, after the edits; where a tensor grows, without what its header gains.
        reason: why it isn't copied.
    """

    source: OnDisk | OnHub
    patches: tuple[TensorPatch, ...] = field(repr=False)
    size: int
    reason: str = "its tensors are edited"


Contents = Data | OnDisk | OnHub | Rewritten


@dataclass(frozen=True)
class Wanted:
    """A file that the published repository is to hold."""

    path: str
    contents: Contents

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.contents.size


def from_disk(path: Path, size: int) -> Data | OnDisk:
    """The contents of a local file: a small one is read, and travels inside the commit."""
    if size > _SMALL:
        return OnDisk(path, size)
    return Data(read_small(path, str(path), _SMALL))


def git_blob_id(data: bytes) -> str:
    """The id that git gives a blob with these contents: SHA-1 of `blob <size>`, a zero byte and the contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def already_held(wanted: Wanted, held: Held | None, results: Mapping[str, str]) -> bool:
    """Whether a repository holds just what is wanted under that name.

    Args:
        wanted: the file.
        held: what the repository has under its name.
        results: SHA-256 of rewritten files by path, as far as they are known.
    """
    if held is None:
        return False
    contents = wanted.contents
    if isinstance(contents, Rewritten):
        known = results.get(wanted.path)
        return known is not None and held.sha256 == known
    if held.size != wanted.size:
        return False
    if isinstance(contents, OnHub):
        source = contents.held
        return source.sha256 == held.sha256 if source.sha256 or held.sha256 else source.oid == held.oid
    return contents.sha256 == held.sha256 if held.sha256 else contents.oid == held.oid


__all__ = [
    "Contents",
    "Data",
    "Held",
    "OnDisk",
    "OnHub",
    "Rewritten",
    "Wanted",
    "already_held",
    "from_disk",
    "git_blob_id",
]
