"""What a repository on the Hub is and holds, at one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ctxforge.publish.connection import Connection
from ctxforge.publish.files import Held


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit.

    Attributes:
        repo: owner/name, as the Hub spells it.
        sha: the commit.
        private: whether only some may see it.
        gated: whether its files are given only to those who accepted its terms.
        files: what it holds, by path.
        branch: whether `sha` is the head of the branch asked for; False where that branch doesn't exist, and `sha` is
            main's.
    """

    repo: str
    sha: str
    private: bool
    gated: bool
    files: Mapping[str, Held] = field(repr=False)
    branch: bool = True


def read_repository(connection: Connection, repo: str, revision: str) -> Repository | None:
    """The repository at a branch, tag or commit; None where there is none that the token may see.

    Raises:
        HubError: the Hub can't be asked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with connection.errors(repo):
        there = True
        try:
            info = connection.run(f"reading {repo}", lambda: connection.api.model_info(repo, revision=revision))
        except RevisionNotFoundError:
            there = False
            info = connection.run(f"reading {repo}", lambda: connection.api.model_info(repo))
        except RepositoryNotFoundError:
            return None
        sha = str(info.sha)
        return Repository(
            repo=str(info.id),
            sha=sha,
            private=bool(info.private),
            gated=bool(info.gated),
            files=read_files(connection, repo, sha),
            branch=there,
        )


def read_files(connection: Connection, repo: str, revision: str) -> dict[str, Held]:
    """All files of a repository at a commit, by path."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def entries() -> list[Any]:
        try:
            return list(connection.api.list_repo_tree(repo, revision=revision, recursive=True))
        except RemoteEntryNotFoundError:
            return []  # a commit without files

    found = connection.run(f"listing {repo}", entries)
    return {entry.path: _held(entry) for entry in found if hasattr(entry, "size")}


def _held(entry: Any) -> Held:
    large = entry.lfs
    size = int(large.size if large is not None else entry.size)
    return Held(entry.path, size, str(entry.blob_id), None if large is None else str(large.sha256), entry.xet_hash)


def other_type(connection: Connection, repo: str) -> str | None:
    """The kind, dataset or space, of the repository that has this id; None where there is none."""
    for kind in ("dataset", "space"):
        with connection.errors(repo):
            if connection.run(f"looking for {repo}", partial(connection.api.repo_exists, repo, repo_type=kind)):
                return kind
    return None
