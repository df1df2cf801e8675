"""A checkpoint on the Hub: its listed hashes, and its small files in the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ctxforge.checkpoint import Checkpoint, file_sha256
from ctxforge.checkpoint.layout import CONFIG, INDEX, JSON_SIDECARS
from ctxforge.checkpoint.remote import RemoteFile, download_small, list_remote
from ctxforge.provenance import FILE_NAME

_SMALL_BYTES = 20_000_000
"""How much is downloaded, in all, of files whose SHA-256 the Hub does not list: code and tokenizers kept in git."""


@dataclass(frozen=True)
class Remote:
    """A repository at a commit.

    Args:
        repo, sha: which one.
        files: what the Hub lists.
        small: the cache's folder that holds its config, index and sidecars.
        hashed_here: files without a listed hash that are small enough to be downloaded and hashed.
    """

    repo: str
    sha: str
    files: Mapping[str, RemoteFile]
    small: Path
    hashed_here: frozenset[str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Remote:
        """The repository that a checkpoint was read from by headers.

        Raises:
            HubError: it can't be reached.
        """
        repo, sha = checkpoint.source.split("@", 1)[0], checkpoint.revision
        assert sha is not None
        files = list_remote(repo, sha)
        small = download_small(repo, sha, [name for name in (CONFIG, INDEX, *JSON_SIDECARS) if name in files])
        recorded = (checkpoint.json_files.get(FILE_NAME) or {}).get("files")
        names = sorted(recorded, key=str) if isinstance(recorded, Mapping) else []
        chosen, left = set(), _SMALL_BYTES
        for name in names:
            if name in files and files[name].sha256 is None and files[name].size <= left:
                left -= files[name].size
                chosen.add(name)
        return cls(repo, sha, files, small, frozenset(chosen))

    @property
    def url(self) -> str:
        """Where people see its files."""
        from huggingface_hub import constants

        return f"{os.environ.get('HF_ENDPOINT', constants.ENDPOINT).rstrip('/')}/{self.repo}/blob/{self.sha}"

    def digest(self, name: str) -> str | None:
        """The SHA-256 of a file: as the Hub lists it for LFS files, computed for small ones, None for the rest."""
        found = self.files.get(name)
        if found is None or found.sha256 is not None:
            return None if found is None else found.sha256
        if name not in self.hashed_here:
            return None
        return file_sha256(download_small(self.repo, self.sha, [name]) / name)
