"""Repositories: commits, references and the record of every state that a reference ever had."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.hub_server.blobs import Blobs, File


@dataclass(frozen=True)
class Commit:
    """One commit: its files in full, and in `paths` those that it added, changed or removed."""

    sha: str
    message: str
    description: str
    parent: str | None
    paths: tuple[str, ...]
    author: str
    date: str
    files: Mapping[str, File] = field(repr=False)


@dataclass(frozen=True)
class PullRequest:
    """A pull request or, with `is_pull_request` False, a discussion."""

    number: int
    title: str
    description: str
    author: str
    date: str
    status: str
    is_pull_request: bool
    base: str = "main"
    merge_sha: str | None = None
    events: tuple[dict[str, Any], ...] = ()

    @property
    def ref(self) -> str:
        """Where its commits are."""
        return f"refs/pr/{self.number}"


@dataclass(frozen=True)
class Change:
    """One change of the server's state, in the order they happened.

    Attributes:
        repo: of the repository.
        what: "create", "delete", "settings", "link" (an LFS object became this repository's), "ref" (a branch, tag or
            pull request moved or began) or "ref deleted".
        ref: "main", a branch, "refs/pr/1" or "refs/tags/x"; empty for changes of no reference.
        sha: what the reference points to now; the sha256 of a linked object.
        files: the whole state at `ref` after the change.
        private: the repository's visibility after the change.
    """

    repo: str
    what: str
    ref: str = ""
    sha: str = ""
    files: Mapping[str, File] = field(default_factory=dict, repr=False)
    private: bool = False


class Repo:
    """One repository. Its methods for tests read; `move`, `link` and the like are the server's, under its lock."""

    def __init__(self, repo_id: str, kind: str, blobs: Blobs, note: Callable[[Change], None]) -> None:
        self.id = repo_id
        self.type = kind
        self.private = False
        self.gated: str | bool = False
        self.granted: set[str] = set()
        self.region = "us"
        self.xet = True
        self.disabled = False
        self.created = now()
        self.refs: dict[str, str] = {}
        self.linked: set[str] = set()
        self.discussions: dict[int, PullRequest] = {}
        self._commits: dict[str, Commit] = {}
        self._blobs = blobs
        self._note = note

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.id.split("/")[0] if "/" in self.id else ""

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches."""
        return tuple(name for name in self.refs if not name.startswith("refs/"))

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags."""
        return tuple(name.removeprefix("refs/tags/") for name in self.refs if name.startswith("refs/tags/"))

    @property
    def pull_requests(self) -> tuple[PullRequest, ...]:
        """The pull requests, oldest first."""
        return tuple(found for found in self.discussions.values() if found.is_pull_request)

    def resolve(self, rev: str) -> Commit | None:
        """The commit that a branch, tag, refs/pr/N, sha or its first seven digits or more points to."""
        for name in (
            rev,
            f"refs/tags/{rev}",
            rev.removeprefix("refs/heads/"),
            rev.replace("refs/convert/", "convert/"),
        ):
            if name in self.refs:
                return self._commits[self.refs[name]]
        found = [sha for sha in self._commits if len(rev) >= 7 and sha.startswith(rev)]
        return self._commits[found[0]] if len(found) == 1 else None

    def at(self, rev: str) -> Commit:
        """The commit of a revision that must exist."""
        commit = self.resolve(rev)
        if commit is None:
            raise KeyError(f"{self.id} has no revision {rev}")
        return commit

    def head(self, branch: str = "main") -> str:
        """The sha of a branch's head."""
        return self.refs[branch]

    def commits(self, branch: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        found, sha = [], self.at(branch).sha
        while sha:
            found.append(self._commits[sha])
            sha = found[-1].parent or ""
        return found

    def files(self, rev: str = "main") -> dict[str, File]:
        """Path to file at a revision."""
        return dict(self.at(rev).files)

    def read(self, path: str, rev: str = "main") -> bytes:
        """The content of a file at a revision."""
        return self._blobs[self.at(rev).files[path].sha256].read()

    def move(self, ref: str, sha: str) -> None:
        """Point a reference to a commit, and note the state that it now shows."""
        self.refs[ref] = sha
        self._note(Change(self.id, "ref", ref, sha, dict(self._commits[sha].files), self.private))

    def remove_ref(self, ref: str) -> None:
        """Delete a reference."""
        sha = self.refs.pop(ref)
        self._note(Change(self.id, "ref deleted", ref, sha, private=self.private))

    def link(self, sha256: str) -> None:
        """Make an LFS object this repository's own."""
        if sha256 not in self.linked:
            self.linked.add(sha256)
            self._note(Change(self.id, "link", sha=sha256, private=self.private))

    def commit(
        self, ref: str, parent: str | None, files: Mapping[str, File], message: str, description: str, author: str
    ) -> Commit:
        """Make a commit on `parent` and point `ref` to it, in one step."""
        before = self._commits[parent].files if parent else {}
        paths = tuple(sorted(path for path in {*before, *files} if before.get(path) != files.get(path)))
        tree = "\n".join(f"{path} {file.oid}" for path, file in sorted(files.items()))
        identity = f"{self.type} {self.id} {parent} {len(self._commits)} {message} {tree}"
        sha = hashlib.sha1(identity.encode()).hexdigest()
        made = Commit(sha, message, description, parent, paths, author, now(), dict(files))
        self._commits[sha] = made
        self.move(ref, sha)
        return made


def now() -> str:
    """The time in the Hub's form."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
