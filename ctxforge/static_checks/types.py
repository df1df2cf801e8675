"""What a static check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctxforge.errors import CtxforgeError

Verdict = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where.

    Args:
        words: what, one line.
        file: the file at fault, relative to the checkpoint's root; "" where none can be named.
        line, column: from 1, of the key at fault; None where there is no such key.
    """

    words: str
    file: str = ""
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Check:
    """One check's outcome; `faults` says where a failed one is wrong."""

    name: str
    verdict: Verdict
    detail: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """All checks of one checkpoint, in order.

    Args:
        path: the checkpoint as the user named it.
        checks: the outcomes.
        base: where its files lie: a folder, or the URL of a Hub repository at a commit.
        revision: the commit of a Hub repository.
        error: why it can't be read as a checkpoint; None for one that can.
    """

    path: str
    checks: tuple[Check, ...]
    base: str = ""
    revision: str | None = None
    error: CtxforgeError | None = None

    @property
    def passed(self) -> bool:
        """True when no check failed; skipped ones don't count."""
        return all(check.verdict != "fail" for check in self.checks)


def failed(name: str, faults: list[Fault]) -> Check:
    """A check that failed for these reasons, joined in its detail."""
    return Check(name, "fail", "; ".join(fault.words for fault in faults), tuple(faults))
