"""Tasks through Slurm, by submitit: one Slurm job a task.

Outputs, sources and the folder of logs must lie where every node sees them.
"""

from __future__ import annotations

import importlib
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.batch.executors.interface import Handle
from ctxforge.batch.results import Failure, TaskResult
from ctxforge.batch.sizes import parse_bytes
from ctxforge.batch.specs import ResourceSpec
from ctxforge.batch.task import Task, run_elsewhere
from ctxforge.errors import ExitCode, UsageError

_POLL = 1.0
_DAY = 24 * 60


@dataclass(frozen=True)
class _Sent:
    task: Task
    job: Any

    def result(self) -> TaskResult:
        """What the task returned, or what Slurm says became of it."""
        try:
            found: TaskResult = self.job.result()
        except Exception as error:  # submitit has one kind for a lost job and another for what the task raised
            state = str(self.job.state).upper()
            if "CANCEL" in state or "INTERRUPT" in state:
                return TaskResult("interrupted")
            last = str(error).strip().splitlines()
            cause = f"the Slurm job {self.job.job_id} ended as {state}: {last[-1] if last else type(error).__name__}"
            remedy = f"see {self.job.paths.stderr}, and run again with --resume"
            return TaskResult("failed", failure=Failure(cause, remedy, ExitCode.RESOURCES))
        return found


class SlurmExecutor:
    """See `Executor`.

    Args:
        folder: for submitit's files and the tasks' logs.
        at_once: tasks that are submitted at the same time; None leaves it to Slurm.
        cluster: of submitit: slurm, or local and debug, which run tasks here.

    Raises:
        UsageError: submitit isn't installed, or this machine has no Slurm.
    """

    elsewhere = True

    def __init__(self, folder: Path, at_once: int | None = None, cluster: str = "slurm") -> None:
        try:
            submitit: Any = importlib.import_module("submitit")
        except ImportError:
            raise UsageError("submitit is not installed", "pip install 'ctxforge-llm[slurm]'") from None
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UsageError(
                "there is no Slurm here: sbatch was not found", "run on a login node, or use another executor"
            )
        self._at_once = at_once
        self._cluster = cluster
        self._poll = _POLL if cluster == "slurm" else 0.05
        self._executor: Any = submitit.AutoExecutor(folder=str(folder / "%j"), cluster=cluster)

    def submit(self, task: Task) -> Handle:
        """Put the task into Slurm's queue with what it needs."""
        try:
            self._executor.update_parameters(**parameters(task))
        except (NameError, AssertionError, TypeError) as error:  # what submitit says of a parameter that is none
            raise UsageError(f"resources.slurm: {error}", "see submitit's documentation for what it takes") from None
        return _Sent(task, self._executor.submit(_run, task))

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """The tasks that have ended."""
        latest = time.monotonic() + seconds
        sent = [handle for handle in handles if isinstance(handle, _Sent)]
        while True:
            done: list[Handle] = [handle for handle in sent if handle.job.done()]
            if done or time.monotonic() > latest:
                return done
            time.sleep(self._poll)

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Take the tasks back (scancel)."""
        sent = [handle for handle in handles if isinstance(handle, _Sent)]
        for handle in sent:
            with suppress(Exception):  # it may have ended by itself
                handle.job.cancel()
        latest = time.monotonic() + 20
        while time.monotonic() < latest and not all(handle.job.done() for handle in sent):
            time.sleep(self._poll)

    def resources(self, wanted: ResourceSpec, running: Sequence[ResourceSpec]) -> bool:
        """Slurm queues, and refuses, by itself."""
        del wanted
        return self._at_once is None or len(running) < self._at_once

    def close(self) -> None:
        """Nothing is held."""


def parameters(task: Task) -> dict[str, Any]:
    """What a task needs, as submitit's executors take it."""
    wanted = task.resources
    given: dict[str, Any] = {
        "name": f"ctxforge-{task.name}"[:64],
        "cpus_per_task": max(1, round(wanted.cpus)),
        "gpus_per_node": round(wanted.gpus),
        "timeout_min": wanted.minutes or _DAY,
    }
    if wanted.memory is not None:
        given["mem_gb"] = parse_bytes(wanted.memory) / 1e9
    given |= {f"slurm_{key.removeprefix('slurm_')}": value for key, value in wanted.slurm.items()}
    return given


def _run(task: Task) -> TaskResult:
    """The task in a Slurm job: scancel, and the end of its time, interrupt it, and it cleans up."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if main else None
    try:
        return run_elsewhere(task)
    except KeyboardInterrupt:
        return TaskResult("interrupted")
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
