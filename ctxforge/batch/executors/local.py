"""Tasks on this machine: light ones in this process where one runs at a time, all others in a process each.

A process each, because what torch allocates is given back only when its process ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.connection import wait as wait_for
from pathlib import Path

from ctxforge.batch.executors.interface import Ended, Handle
from ctxforge.batch.results import Failure, TaskResult
from ctxforge.batch.sizes import parse_bytes
from ctxforge.batch.specs import ResourceSpec
from ctxforge.batch.task import Task, run_task
from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import ExitCode, ResourceError

_GRACE = 20.0
"""Seconds that a task has to end cleanly."""

Opened = Callable[[Task], Checkpoint | None]


class LocalExecutor:
    """See `Executor`.

    Args:
        at_once: tasks that run at the same time.
        logs: folder for what the tasks' processes print; None to drop it.
        opened: gives a light task's source where this process has read it.
        hold: descriptors that the processes hold until they end, the journal's lock above all.
        told: called with (what, done, of how many) by tasks in this process.
    """

    elsewhere = False

    def __init__(
        self,
        at_once: int = 1,
        *,
        logs: Path | None = None,
        opened: Opened | None = None,
        hold: Sequence[int] = (),
        told: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._at_once = at_once
        self._logs = logs
        self._opened = opened or (lambda _task: None)
        self._hold = tuple(hold)
        self._told = told

    def submit(self, task: Task) -> Handle:
        """Start a process for the task, or run it here."""
        if self._at_once == 1 and task.light:
            return Ended(task, run_task(task, self._told, self._opened(task)))
        return _Child(task, self._logs, self._hold)

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """The tasks whose processes have answered or died."""
        done = [handle for handle in handles if not isinstance(handle, _Child)]
        children = {handle.reader: handle for handle in handles if isinstance(handle, _Child)}
        ready = wait_for(list(children), 0 if done else seconds)
        return done + [children[reader] for reader in ready if isinstance(reader, Connection)]

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Interrupt the processes; kill those that don't end in their time."""
        children = [handle for handle in handles if isinstance(handle, _Child)]
        for child in children:
            child.interrupt()
        latest = time.monotonic() + _GRACE
        for child in children:
            child.end(latest)

    def resources(self, wanted: ResourceSpec, running: Sequence[ResourceSpec]) -> bool:
        """Whether there is a free place, and the GPUs and the memory that the job asks for."""
        gpus, memory = _gpus(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if wanted.gpus > gpus:
            raise ResourceError(
                f"the job asks for {wanted.gpus:g} GPUs, and this machine has {gpus}", "lower resources.gpus"
            )
        if _memory(wanted) > memory:
            raise ResourceError(
                f"the job asks for {wanted.memory} of memory, and this machine has {memory / 1e9:.1f} GB",
                "lower resources.memory, or use another executor",
            )
        if not running:
            return True
        return (
            len(running) < self._at_once
            and sum(one.gpus for one in running) + wanted.gpus <= max(gpus, 0)
            and sum(map(_memory, running)) + _memory(wanted) <= memory
        )

    def close(self) -> None:
        """Remove the folder of logs where nothing was printed."""
        if self._logs is not None:
            with suppress(OSError):
                self._logs.rmdir()


class _Child:
    """A task in a process of its own."""

    def __init__(self, task: Task, logs: Path | None, hold: tuple[int, ...]) -> None:
        self.task = task
        self.reader, writer = Pipe(duplex=False)
        self._result: TaskResult | None = None
        self._asked = False
        self._log: Path | None = None
        output: int | None = None
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            self._log = logs / f"{task.name}.log"
            output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ctxforge.batch.child", str(writer.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if output is None else output,
                stderr=subprocess.DEVNULL if output is None else output,
                pass_fds=(writer.fileno(), *hold),
                start_new_session=True,  # Ctrl-C is for the parent, which tells its children
            )
        finally:
            writer.close()
            if output is not None:
                os.close(output)
        data = pickle.dumps(task)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(len(data).to_bytes(8, "little") + data)
            self._process.stdin.flush()

    def result(self) -> TaskResult:
        """What the process answered, or how it died."""
        if self._result is None:
            self.end(time.monotonic() + _GRACE)
        assert self._result is not None
        return self._result

    def interrupt(self) -> None:
        """Ask the process to end."""
        self._asked = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def end(self, latest: float) -> None:
        """Take the answer, and see the process off."""
        if self._result is not None:
            return
        answer: TaskResult | None = None
        with suppress(EOFError, OSError):
            if self.reader.poll(max(0.0, latest - time.monotonic())):
                answer = self.reader.recv()
        assert self._process.stdin is not None
        try:
            self._process.wait(max(0.1, latest - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self.reader.close()
        self._result = answer or self._died()
        # What an interrupted process printed says where it was, and nothing else.
        told = self._result.status != "interrupted" and self._log is not None and self._log.exists()
        if self._log is not None and not (told and self._log.stat().st_size):
            self._log.unlink(missing_ok=True)

    def _died(self) -> TaskResult:
        if self._asked:
            return TaskResult("interrupted")
        code = self._process.returncode
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        remedy = "free some memory if the system killed it, and run again with --resume"
        if self._log is not None:
            remedy += f"; what it printed is in {self._log}"
        return TaskResult("failed", failure=Failure(f"the job's process died {how}", remedy, ExitCode.RESOURCES))


def _memory(wanted: ResourceSpec) -> int:
    return 0 if wanted.memory is None else parse_bytes(wanted.memory)


def _gpus() -> int:
    """NVIDIA GPUs that may be used, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0
