"""Tasks on a Ray cluster: one Ray task a job, with the job's resources, tried again elsewhere when a worker dies.

Outputs and sources must lie where every node sees them. A task that is tried again finds what its predecessor left:
nothing, or the whole output.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxforge.batch.executors.interface import Handle
from ctxforge.batch.results import Failure, TaskResult, described
from ctxforge.batch.sizes import parse_bytes
from ctxforge.batch.specs import ResourceSpec
from ctxforge.batch.task import Task, run_elsewhere
from ctxforge.errors import ExitCode, ResourceError, UsageError

RETRIES = 3
"""Times that a task is tried again after its worker died."""


@dataclass(frozen=True)
class _Sent:
    task: Task
    reference: Any
    ray: Any

    def result(self) -> TaskResult:
        """What the task returned, or what became of its workers."""
        try:
            found: TaskResult = self.ray.get(self.reference, timeout=60)
        except self.ray.exceptions.TaskCancelledError:
            return TaskResult("interrupted")
        except self.ray.exceptions.WorkerCrashedError:
            cause = f"the job's workers died, {RETRIES + 1} of them"
            remedy = "see Ray's logs; give the job more memory (resources.memory), and run again with --resume"
            return TaskResult("failed", failure=Failure(cause, remedy, ExitCode.RESOURCES))
        except self.ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            if isinstance(cause, KeyboardInterrupt):
                return TaskResult("interrupted")
            return TaskResult("failed", failure=described(cause))
        except self.ray.exceptions.RayError as error:
            cause = f"Ray gave the job up: {type(error).__name__}"
            remedy = "see Ray's logs, and run again with --resume"
            return TaskResult("failed", failure=Failure(cause, remedy, ExitCode.RESOURCES))
        return found


class RayExecutor:
    """See `Executor`. Joins the cluster of RAY_ADDRESS or of this machine; starts one here where there is none.

    Args:
        at_once: tasks that are submitted at the same time; None leaves it to Ray.
        start: arguments of `ray.init` in place of what is said above.

    Raises:
        UsageError: Ray isn't installed.
    """

    elsewhere = True

    def __init__(self, at_once: int | None = None, start: dict[str, Any] | None = None) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise UsageError("ray is not installed", "pip install 'ctxforge-llm[ray]'") from None
        self._at_once = at_once
        self._started = not self._ray.is_initialized()
        if self._started:
            self._join(start)

    def _join(self, start: dict[str, Any] | None) -> None:
        options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if start is not None:
            self._ray.init(**options, **start)
            return
        try:
            self._ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", **options)
        except ConnectionError:
            if os.environ.get("RAY_ADDRESS"):
                raise UsageError(
                    "there is no Ray cluster at RAY_ADDRESS", "start it (ray start --head), or unset RAY_ADDRESS"
                ) from None
            self._ray.init(include_dashboard=False, **options)

    def submit(self, task: Task) -> Handle:
        """Send the task with what it needs."""
        wanted = task.resources
        options: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "name": task.name}
        if wanted.memory is not None:
            options["memory"] = parse_bytes(wanted.memory)
        # Only a worker's death is tried again: what a task itself reports would be the same anywhere.
        remote = self._ray.remote(run_elsewhere).options(max_retries=RETRIES, retry_exceptions=False, **options)
        return _Sent(task, remote.remote(task), self._ray)

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """The tasks that have ended."""
        sent = {handle.reference: handle for handle in handles if isinstance(handle, _Sent)}
        if not sent:
            return []
        ready, _ = self._ray.wait(list(sent), num_returns=1, timeout=seconds)
        return [sent[reference] for reference in ready]

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Interrupt the tasks, as Ctrl-C would."""
        sent = [handle for handle in handles if isinstance(handle, _Sent)]
        for handle in sent:
            self._ray.cancel(handle.reference, force=False)
        references = [handle.reference for handle in sent]
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=20)

    def resources(self, wanted: ResourceSpec, running: Sequence[ResourceSpec]) -> bool:
        """Ray queues by itself; what no node has is refused."""
        needs = {"CPU": wanted.cpus, "GPU": wanted.gpus}
        if wanted.memory is not None:
            needs["memory"] = parse_bytes(wanted.memory)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= count for name, count in needs.items()) for node in nodes):
            asked = ", ".join(f"{count:g} {name}" for name, count in needs.items() if count)
            raise ResourceError(f"no node of the Ray cluster has {asked}", "lower the job's resources, or add a node")
        return self._at_once is None or len(running) < self._at_once

    def close(self) -> None:
        """Leave the cluster, where this executor joined it."""
        if self._started:
            self._ray.shutdown()
