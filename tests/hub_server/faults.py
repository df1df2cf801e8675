"""Faults to inject: what the network and the Hub do on a bad day."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """One fault, and which requests it meets.

    Attributes:
        kind: "drop" closes the connection without an answer; "status" answers `status`; "slow" waits `seconds` before
            the answer; "truncate" announces the whole body and closes after a part of it; "lie" claims false sizes;
            "act" calls `action` before the request has any effect: somebody else commits in between, say.
        method: only this method; None for all.
        path_pattern: a regular expression searched in path?query as sent; None for all.
        nth: the first matching request that fails, counted from 1 at injection.
        times: how many matching requests in a row fail; None for ever.
        status: of "status".
        seconds: of "slow".
        headers: added to the answer of "status" (Retry-After, say).
        when: "before" the request has any effect, "during" its body (half of it was read, no effect), or "after" it
            took effect and only the answer is lost. For "drop", "status" and "slow"; a request that waits "before"
            takes effect after the wait, whether its client is still there or not.
        message: the error message of "status".
        code: X-Error-Code of "status".
        keep: bytes of the body that "truncate" lets through; None for half.
        about: of "lie": "tree" (sizes in tree, paths-info and repository information), "length" (Content-Length of a
            file), "linked" (X-Linked-Size); None for all that the answer holds.
        claims: the size that "lie" claims; None for 1,000 bytes more than the truth.
        files: of "lie": a regular expression for the files that it concerns; None for all.
        action: of "act".
    """

    kind: Literal["drop", "status", "slow", "truncate", "lie", "act"]
    method: str | None = None
    path_pattern: str | None = None
    nth: int = 1
    times: int | None = 1
    status: int = 500
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    when: Literal["before", "during", "after"] = "before"
    message: str = "An injected fault."
    code: str | None = None
    keep: int | None = None
    about: Literal["tree", "length", "linked"] | None = None
    claims: int | None = None
    files: str | None = None
    action: Callable[[], object] | None = None

    def meets(self, method: str, target: str) -> bool:
        """Whether a request is of the kind that this fault waits for."""
        return self.method in (None, method) and (
            self.path_pattern is None or re.search(self.path_pattern, target) is not None
        )

    def concerns(self, path: str) -> bool:
        """Whether a lie is about this file."""
        return self.files is None or re.search(self.files, path) is not None

    def claimed(self, size: int) -> int:
        """The size that a lie says instead of `size`."""
        return size + 1000 if self.claims is None else self.claims


@dataclass(frozen=True)
class Fired:
    """A fault that met a request."""

    fault: Fault
    method: str
    path: str


class Faults:
    """The faults that wait, how many requests each has seen, and those that fired."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: list[tuple[Fault, list[int]]] = []
        self.fired: list[Fired] = []

    def inject(self, *faults: Fault) -> None:
        """Wait for requests to fail."""
        with self._lock:
            self._waiting += [(fault, [0]) for fault in faults]

    def clear(self) -> None:
        """Drop the faults that wait; what fired stays on record."""
        with self._lock:
            self._waiting.clear()

    def take(self, method: str, target: str) -> list[Fault]:
        """The faults that this request meets, and count it."""
        found = []
        with self._lock:
            for fault, seen in self._waiting:
                if not fault.meets(method, target):
                    continue
                seen[0] += 1
                if seen[0] >= fault.nth and (fault.times is None or seen[0] < fault.nth + fault.times):
                    found.append(fault)
                    self.fired.append(Fired(fault, method, target))
        return found
