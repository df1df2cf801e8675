"""One request as a route sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tests.hub_server.accounts import Account, require_sight
from tests.hub_server.answers import refuse
from tests.hub_server.blobs import CHUNK
from tests.hub_server.counting import Entry
from tests.hub_server.repos import Commit, Repo
from tests.hub_server.state import State


class GoneError(ConnectionError):
    """The client went away, or a fault says that it did."""


class Body:
    """A request's body, read as it is asked for and counted as it arrives."""

    def __init__(self, stream: BinaryIO, length: int | None, entry: Entry) -> None:
        self._stream = stream
        self._entry = entry
        self._chunked = length is None
        self._left = length or 0
        self._done = length == 0

    def chunks(self, limit: int | None = None) -> Iterator[bytes]:
        """What remains of the body, at most `limit` bytes of it."""
        while not self._done and limit != 0:
            if self._chunked and self._left == 0:
                self._next_chunk()
                continue
            part = self._stream.read1(min(self._left, CHUNK if limit is None else min(CHUNK, limit)))  # type: ignore[attr-defined]
            if not part:
                raise GoneError("the body ended early")
            self._entry.add(received=len(part))
            self._left -= len(part)
            limit = None if limit is None else limit - len(part)
            if self._left == 0 and self._chunked:
                self._stream.readline()
            elif self._left == 0:
                self._done = True
            yield part

    def read(self) -> bytes:
        """What remains of the body."""
        return b"".join(self.chunks())

    def half(self) -> None:
        """Read half of a body whose length was announced, all but the end of another."""
        for _ in self.chunks(self._left // 2 if not self._chunked else 1):
            pass

    def drain(self) -> None:
        """Read what remains, so that the connection can be used again."""
        for _ in self.chunks():
            pass

    def _next_chunk(self) -> None:
        line = self._stream.readline().split(b";")[0].strip()
        if not line:
            raise GoneError("the body ended early")
        self._left = int(line, 16)
        if self._left == 0:
            while self._stream.readline().strip():
                pass
            self._done = True


@dataclass
class Call:
    """A request: who asks for what, and the server's state.

    Attributes:
        parts: the named pieces of the path, percent-decoded.
        query: the query's values by name.
    """

    state: State
    method: str
    headers: Any
    parts: dict[str, str]
    query: dict[str, list[str]]
    account: Account | None
    body: Body

    @property
    def kind(self) -> str:
        """The repository type in the path: "model", "dataset" or "space"."""
        return (self.parts.get("kind") or "models").removesuffix("s")

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
        return self.query.get(name, ["0"])[-1].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body.read() or b"{}")
        except ValueError:
            refuse(400, "Invalid JSON body")
        if not isinstance(value, dict):
            refuse(400, "Invalid JSON body")
        return value

    def repo(self) -> Repo:
        """The repository in the path, if this account may see it."""
        return require_sight(self.account, self.state.repos.get((self.kind, self.parts["repo"])))

    def commit(self, repo: Repo, rev: str | None = None) -> Commit:
        """The commit of the revision in the path."""
        rev = rev if rev is not None else self.parts.get("rev", "main")
        commit = repo.resolve(rev)
        if commit is None:
            refuse(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return commit

    def page(self, repo: Repo) -> str:
        """The repository's address on this server."""
        prefix = "" if repo.type == "model" else f"{repo.type}s/"
        return f"{self.state.url}/{prefix}{repo.id}"
