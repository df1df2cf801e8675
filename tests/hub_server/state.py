"""All that the server knows, under one lock, and its options."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

from tests.hub_server.accounts import Account
from tests.hub_server.blobs import Blobs
from tests.hub_server.counting import Counter
from tests.hub_server.faults import Faults
from tests.hub_server.repos import Change, Repo


@dataclass
class Options:
    """What kind of Hub this is.

    Attributes:
        older: the Hub before server-side copies: `lfs-files/duplicate` is 404 and no file has an xetHash.
        xet: whether repositories that are created over HTTP keep Xet hashes.
        region: storage region of repositories that are created over HTTP.
        multipart_above: LFS objects of more bytes are uploaded in parts.
        part_size: bytes of a part.
        page_size: entries on one page of a tree.
        shared_names: whether a model, a dataset and a space may have one name, as on the Hub; with False a name that
            another type has is 409.
    """

    older: bool = False
    xet: bool = True
    region: str = "us"
    multipart_above: int = 64 << 20
    part_size: int = 16 << 20
    page_size: int = 1000
    shared_names: bool = True


@dataclass
class Upload:
    """An LFS upload that the batch answer promised: its ticket is the only permission that a PUT needs.

    Attributes:
        repo: where the object is to be linked.
        sha256: its content's.
        size: in bytes.
        parts: number to ETag of the parts that are at their place in the file at `path`.
        path: of the parts; None before the first.
    """

    repo: Repo
    sha256: str
    size: int
    parts: dict[int, str] = field(default_factory=dict)
    path: Path | None = None


class State:
    """Accounts, repositories, contents, uploads under way; `lock` makes every change one step."""

    def __init__(self, blobs: Blobs, options: Options) -> None:
        self.lock = RLock()
        self.url = ""
        self.blobs = blobs
        self.options = options
        self.faults = Faults()
        self.counter = Counter()
        self.accounts: dict[str, Account] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, Upload] = {}
        self.journal: list[Change] = []
        self.problems: list[str] = []

    def note(self, change: Change) -> None:
        """Record a change."""
        with self.lock:
            self.journal.append(change)

    def make_repo(self, repo_id: str, kind: str) -> Repo:
        """A new repository, not listed yet."""
        return Repo(repo_id, kind, self.blobs, self.note)

    def list_repo(self, repo: Repo) -> None:
        """Let a repository exist."""
        self.repos[repo.type, repo.id] = repo
        self.note(Change(repo.id, "create", private=repo.private))

    def shown_xet(self, value: str | None) -> str | None:
        """An xet hash as this Hub shows it."""
        return None if self.options.older else value

    def promise(self, upload: Upload) -> str:
        """A ticket for an upload."""
        ticket = secrets.token_hex(12)
        with self.lock:
            self.uploads[ticket] = upload
        return ticket
