"""What an executor is: something that runs tasks, here or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ctxforge.batch.results import TaskResult
from ctxforge.batch.specs import ResourceSpec
from ctxforge.batch.task import Task


class Handle(Protocol):
    """A task that was submitted."""

    @property
    def task(self) -> Task:
        """What was submitted."""

    def result(self) -> TaskResult:
        """How it ended; only after `wait` or `cancel` named it. Never raises for what the task did."""


class Executor(Protocol):
    """Runs tasks."""

    elsewhere: bool
    """Whether tasks may run on other machines, so that downloads on this one don't help them."""

    def submit(self, task: Task) -> Handle:
        """Start a task, or put it in a queue."""

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """Those of `handles` that have ended; waits up to `seconds` for the first."""

    def cancel(self, handles: Sequence[Handle]) -> None:
        """End tasks: what they staged is removed, and they have results when this returns."""

    def resources(self, wanted: ResourceSpec, running: Sequence[ResourceSpec]) -> bool:
        """Whether a job that needs `wanted` can be submitted beside those that are running.

        Raises:
            ResourceError: it can never be.
        """

    def close(self) -> None:
        """Give back what the executor holds."""


@dataclass(frozen=True)
class Ended:
    """A handle of a task that has ended."""

    task: Task
    ending: TaskResult

    def result(self) -> TaskResult:
        """How it ended."""
        return self.ending
