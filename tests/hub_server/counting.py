"""What every request moved, both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock


@dataclass(frozen=True)
class Request:
    """One request as the server saw it.

    Attributes:
        method: GET, HEAD, POST, PUT or DELETE.
        path: as sent (percent-encoded), without the query.
        status: of the answer; None where the connection was dropped before one.
        received: bytes of the request's body that arrived.
        sent: bytes of the answer's body that went out.
        query: as sent, without the question mark.
        account: who asked; None for anonymous and for a token that is unknown.
        range: the Range header, None without one.
    """

    method: str
    path: str
    status: int | None = None
    received: int = 0
    sent: int = 0
    query: str = ""
    account: str | None = None
    range: str | None = None


class Entry:
    """A request under way: counts are added before the bytes leave, so that a client's view is never ahead of ours."""

    def __init__(self, counter: Counter, request: Request) -> None:
        self._counter = counter
        self.request = request

    def update(self, **changes: object) -> None:
        """Set fields of the request."""
        with self._counter.lock:
            self.request = replace(self.request, **changes)  # type: ignore[arg-type]

    def add(self, *, received: int = 0, sent: int = 0) -> None:
        """Count bytes."""
        with self._counter.lock:
            self.request = replace(
                self.request, received=self.request.received + received, sent=self.request.sent + sent
            )


class Counter:
    """Every request since the last reset, in the order they came."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._entries: list[Entry] = []

    def begin(self, request: Request) -> Entry:
        """Note a request that just arrived."""
        entry = Entry(self, request)
        with self.lock:
            self._entries.append(entry)
        return entry

    def requests(self) -> list[Request]:
        """What was asked so far."""
        with self.lock:
            return [entry.request for entry in self._entries]

    def reset(self) -> None:
        """Forget what was counted."""
        with self.lock:
            self._entries.clear()
