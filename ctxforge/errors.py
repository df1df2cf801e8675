"""Every error that a user can meet: a cause, what to do about it, and an exit code.

The codes are part of the interface (docs/reference/exit-codes.md) and follow the convention of linters:
0 is success and 1 is reserved for "the check ran and the answer is no".
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, frozen: scripts and CI jobs depend on them."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    UNSUPPORTED = 3
    HUB = 4
    RESOURCES = 5
    INTERNAL = 70
    INTERRUPTED = 130


class CtxforgeError(Exception):
    """A failure that the user can act on.

    Args:
        cause: one line that names what is wrong, with the file, key or value at fault.
        remedy: one line that says what to do.
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause = one_line(cause)
        self.remedy = one_line(remedy)


class UsageError(CtxforgeError, ValueError):
    """An argument, a recipe or a file that the user gave is wrong."""


class CheckpointError(CtxforgeError, ValueError):
    """A checkpoint that is incomplete, malformed or inconsistent."""


class UnsupportedError(CtxforgeError):
    """A model, method or combination that ctxforge refuses rather than convert wrongly."""

    exit_code = ExitCode.UNSUPPORTED


class HubError(CtxforgeError):
    """The Hub, the network or a credential stood in the way."""

    exit_code = ExitCode.HUB


class ResourceError(CtxforgeError):
    """Out of disk or memory, an unreadable file, or an output that another run holds."""

    exit_code = ExitCode.RESOURCES


class InterruptedRunError(CtxforgeError):
    """The user stopped a long command; what it finished is kept."""

    exit_code = ExitCode.INTERRUPTED


class InternalError(CtxforgeError):
    """ctxforge contradicts itself: what it emitted does not compute what it planned. Never the user's fault."""

    exit_code = ExitCode.INTERNAL


def one_line(text: str) -> str:
    """`text` with runs of whitespace, line breaks included, collapsed, so that a message stays one line."""
    return " ".join(text.split())
