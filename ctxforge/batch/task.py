"""A job as executors run it, anywhere: plain data in, plain data out. All of them call `run_task`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctxforge.batch.converting import convert
from ctxforge.batch.judging import judge
from ctxforge.batch.planning import CONVERT, VERIFY
from ctxforge.batch.publishing import publish
from ctxforge.batch.results import Failure, TaskResult, described
from ctxforge.batch.specs import JobSpec, ResourceSpec
from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import ExitCode

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """What is to be done of a job, and how.

    Attributes:
        name: of the job.
        spec: templates filled in.
        out: absolute.
        stages: to run, in order.
        revision: the commit that a Hub source has to be.
        shared: a copy of the source whose files may be linked; None to take the source itself.
        twin: the finished output of a job that does the same to the same source, of which this one is a copy.
        before: which folder stood at `out` before the work began; another one that is whole is the result already.
        replace: whether `out` may be replaced.
        light: see `Planned`.
        written: whether the job's result is a folder here; else it is published straight away.
        reports: folder for the reports of verifications.
        folder: the working folder, to which paths are relative.
        yes: what the user agreed to.
    """

    name: str
    spec: JobSpec
    out: str
    stages: tuple[str, ...]
    revision: str | None = None
    shared: str | None = None
    twin: str | None = None
    before: list[int] | None = None
    replace: bool = False
    light: bool = False
    written: bool = True
    reports: str | None = None
    folder: str = "."
    yes: bool = False

    @property
    def resources(self) -> ResourceSpec:
        """What the job needs."""
        return self.spec.resources


def run_task(task: Task, told: Told | None = None, checkpoint: Checkpoint | None = None) -> TaskResult:
    """Run a task's stages. Whatever fails is in the result; an interrupt goes on to the caller.

    Running it again after it was killed, here or elsewhere, completes it.

    Args:
        task: what to do.
        told: called with (what, done, of how many).
        checkpoint: the task's source, where this process has read it.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    began = time.monotonic()
    say = told or (lambda _what, _done, _total: None)
    stages: dict[str, dict[str, Any]] = {}
    try:
        for stage in task.stages:
            if stage == CONVERT:
                stages[stage] = convert(task, say, checkpoint)
            elif stage == VERIFY:
                stages[stage] = judge(task, say)
                if stages[stage]["exit_code"]:
                    break  # what fails a gate is not published
            else:
                stages[stage] = publish(task, say)
    except Exception as error:
        if os.environ.get("CTXFORGE_DEBUG"):
            import traceback

            traceback.print_exc()
        return TaskResult("failed", stages, time.monotonic() - began, described(error))
    return TaskResult("done", stages, time.monotonic() - began)


def run_elsewhere(task: Task) -> TaskResult:
    """As `run_task`, from the task's working folder, whatever that of this process is."""
    try:
        os.chdir(task.folder)
    except OSError as error:
        cause = f"this node does not see the working folder {task.folder}: {error.strerror}"
        remedy = "run from a folder that every node has under the same path"
        return TaskResult("failed", failure=Failure(cause, remedy, ExitCode.RESOURCES))
    return run_task(task)
