"""How jobs ended, and what that means for the whole."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ctxforge.errors import CtxforgeError, ExitCode, one_line

Status = Literal["done", "skipped", "failed", "refused", "interrupted", "not run"]

FROM_BEST_TO_WORST = (
    ExitCode.OK,
    ExitCode.UNSUPPORTED,
    ExitCode.CHECK_FAILED,
    ExitCode.USAGE,
    ExitCode.HUB,
    ExitCode.RESOURCES,
    ExitCode.INTERNAL,
    ExitCode.INTERRUPTED,
)
"""The order in which a batch's exit code is chosen. No answer (3) is better than a bad one (1)."""


@dataclass(frozen=True)
class Failure:
    """Why a job failed.

    Attributes:
        cause, remedy: a line each.
        exit_code: what the command on its own would have exited with.
    """

    cause: str
    remedy: str
    exit_code: int


@dataclass(frozen=True)
class TaskResult:
    """What came of a task.

    Attributes:
        status: done, failed or interrupted.
        stages: what each finished stage recorded, by its name.
        seconds: it took.
        failure: of a failed one; a gate that fails is no failure of the task.
    """

    status: Status
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    failure: Failure | None = None


@dataclass(frozen=True)
class JobResult:
    """A job's line in the summary.

    Attributes:
        name: of the job.
        status: done: something was done; skipped: all of it was done before; refused: it couldn't be planned.
        exit_code: 0, the failure's, or that of the gates.
        out: the output; None where the result was published and not written.
        stages: what each stage recorded.
        seconds: it took.
        failure: why, where it failed.
    """

    name: str
    status: Status
    exit_code: int
    out: str | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    failure: Failure | None = None

    @property
    def bytes_written(self) -> int:
        """Bytes that the conversion handed to the file system; 0 where it was done before."""
        return int(self.stages.get("convert", {}).get("bytes_written", 0)) if self.status != "skipped" else 0

    @property
    def verdict(self) -> str:
        """Of the gates; "" where none were judged."""
        return str(self.stages.get("verify", {}).get("verdict", ""))

    @property
    def url(self) -> str:
        """Of the commit that published it; "" where nothing was published."""
        return str(self.stages.get("push", {}).get("url", ""))

    def document(self) -> dict[str, Any]:
        """As JSON data; without what only a later run needs."""
        hidden = ("key", "snapshot", "event", "job", "stage")
        stages = {
            name: {key: value for key, value in stage.items() if key not in hidden}
            for name, stage in self.stages.items()
        }
        error = None if self.failure is None else vars(self.failure)
        return {
            "job": self.name,
            "status": self.status,
            "exit_code": self.exit_code,
            "out": self.out,
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "verdict": self.verdict or None,
            "url": self.url or None,
            "stages": stages,
            "error": error,
        }


def worst(codes: Iterable[int]) -> int:
    """The worst of some exit codes in the order of `FROM_BEST_TO_WORST`; an unknown one is an internal error."""
    known = [ExitCode(code) if code in set(ExitCode) else ExitCode.INTERNAL for code in codes]
    return int(max(known, key=FROM_BEST_TO_WORST.index, default=ExitCode.OK))


def described(error: BaseException) -> Failure:
    """A failure as the command line would tell it."""
    if isinstance(error, CtxforgeError):
        return Failure(error.cause, error.remedy, int(error.exit_code))
    if isinstance(error, MemoryError):
        return Failure("out of memory", "use a machine with more memory, or a shorter length", ExitCode.RESOURCES)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure("out of disk", "free some space and run the same command again", ExitCode.RESOURCES)
    if isinstance(error, OSError):
        cause = one_line(f"{error.strerror or error}: {error.filename or ''}")
        return Failure(cause, "check the path and its permissions", ExitCode.RESOURCES)
    return Failure(
        one_line(f"unexpected {type(error).__name__}: {error}"),
        "this is a defect of ctxforge: run the job alone with CTXFORGE_DEBUG=1 and report the traceback",
        ExitCode.INTERNAL,
    )


def of_stages(stages: dict[str, dict[str, Any]]) -> int:
    """The exit code of a job whose stages all ran: that of its gates."""
    return worst(int(stage.get("exit_code", 0)) for stage in stages.values())
