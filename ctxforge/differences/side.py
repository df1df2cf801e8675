"""One side of a comparison: a checkpoint, what is known of its files' contents, and how to get at them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ctxforge.checkpoint import Checkpoint, file_sha256, read_checkpoint
from ctxforge.checkpoint.files import BLOCK, open_regular, reading
from ctxforge.checkpoint.remote import RemoteFile, download_small, list_remote
from ctxforge.errors import UnsupportedError
from ctxforge.provenance import FILE_NAME
from ctxforge.sources import resolve_source

_SMALL_BYTES = 20_000_000
"""Files of the Hub up to this size, weights aside, are downloaded where their listed hashes don't decide."""


@dataclass
class Side:
    """A checkpoint to compare.

    Args:
        name: as the user named it.
        checkpoint: what was read.
        remote: what the Hub lists; None for a local checkpoint.
        with_bytes: whether weights may be downloaded from the Hub.
        trust_recorded: whether hashes that `ctxforge.json` records are taken for those of the files.
        hashes: SHA-256 of local files that were computed already.
        fetched: files of the Hub that were downloaded already.
    """

    name: str
    checkpoint: Checkpoint
    remote: Mapping[str, RemoteFile] | None
    with_bytes: bool = False
    trust_recorded: bool = False
    hashes: dict[str, str] = field(default_factory=dict)
    fetched: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, *, with_bytes: bool, trust_recorded: bool) -> Side:
        """Read a checkpoint by its headers.

        Raises:
            CtxforgeError: see `read_checkpoint`; a GGUF file.
        """
        checkpoint = read_checkpoint(resolve_source(name))
        if checkpoint.weights == "gguf":
            raise UnsupportedError(
                f"{name} is a GGUF file, whose tensors are not those of a checkpoint",
                "compare what `extend` makes of it",
            )
        remote = None
        if checkpoint.root is None:
            assert checkpoint.revision is not None
            remote = list_remote(checkpoint.source.split("@", 1)[0], checkpoint.revision)
        return cls(name, checkpoint, remote, with_bytes, trust_recorded)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weight files whose tensors are known; none for `.bin` weights, which are files like any other."""
        return self.checkpoint.weight_files if self.checkpoint.weights == "safetensors" else ()

    def size(self, file: str) -> int:
        """In bytes."""
        return self.checkpoint.file_sizes[file]

    def inode(self, file: str) -> tuple[int, int] | None:
        """What two names of one local file share; None on the Hub."""
        path = self.local(file)
        if path is None:
            return None
        with reading(str(path)):
            status = path.stat()
        return status.st_dev, status.st_ino

    def local(self, file: str) -> Path | None:
        """Where a file lies on this machine; None where it is on the Hub alone."""
        root = self.checkpoint.root
        return self.fetched.get(file) if root is None else root / file

    def reach(self, file: str) -> Path | None:
        """Where a file lies on this machine, downloaded where that is allowed; None where it isn't.

        Raises:
            HubError: the download failed.
        """
        path = self.local(file)
        weight = file in self.checkpoint.weight_files
        if path is None and (self.with_bytes or (not weight and self.size(file) <= _SMALL_BYTES)):
            repo, sha = self.checkpoint.source.split("@", 1)[0], self.checkpoint.revision
            assert sha is not None
            path = self.fetched[file] = download_small(repo, sha, [file]) / file
        return path

    def known_sha256(self, file: str) -> str | None:
        """A file's SHA-256 where it is known without reading: from the Hub, or as it was recorded."""
        if self.remote is not None:
            return self.remote[file].sha256
        if file in self.hashes:
            return self.hashes[file]
        recorded = (self.checkpoint.json_files.get(FILE_NAME) or {}).get("files") if self.trust_recorded else None
        digest = recorded.get(file) if isinstance(recorded, Mapping) else None
        return digest if isinstance(digest, str) else None

    def sha256(self, file: str) -> str | None:
        """A file's SHA-256, computed where it isn't known; None where that would move a weight file."""
        known = self.known_sha256(file)
        if known is None:
            path = self.reach(file)
            if path is None:
                return None
            known = self.hashes[file] = file_sha256(path)
        return known

    def git_id(self, file: str) -> str | None:
        """The git object id of a file that is kept in git, computed for a local one."""
        if self.remote is not None:
            found = self.remote[file]
            return found.blob_id if found.sha256 is None else None
        path = self.local(file)
        assert path is not None
        digest = hashlib.sha1(b"blob %d\0" % self.size(file), usedforsecurity=False)
        with open_regular(path, file) as descriptor, reading(file):
            while block := os.read(descriptor, BLOCK):
                digest.update(block)
        return digest.hexdigest()


def same_file(one: Side, file: str, other: Side, other_file: str) -> bool | None:
    """Whether two files hold the same bytes; None where that can't be known without moving weights.

    In the order of what it costs: sizes, one file under two names, hashes known, git object ids, hashes computed.
    """
    if one.size(file) != other.size(other_file):
        return False
    inode = one.inode(file)
    if inode is not None and inode == other.inode(other_file):
        return True
    known = one.known_sha256(file), other.known_sha256(other_file)
    if known[0] is not None and known[1] is not None:
        return known[0] == known[1]
    if known == (None, None) and (one.remote is not None or other.remote is not None):
        ids = one.git_id(file), other.git_id(other_file)
        if None not in ids:
            return ids[0] == ids[1]
    digests = one.sha256(file), other.sha256(other_file)
    return None if None in digests else digests[0] == digests[1]
