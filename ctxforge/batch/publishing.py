"""The stage that publishes a job's output."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ctxforge.errors import UnsupportedError

if TYPE_CHECKING:
    from ctxforge.batch.task import Task

Told = Callable[[str, int, int], None]


def refuse_without_publisher() -> None:
    """Refuse where this ctxforge can't publish.

    Raises:
        UnsupportedError: there is no `ctxforge.publish`.
    """
    if importlib.util.find_spec("ctxforge.publish.api") is None:
        raise UnsupportedError("this ctxforge cannot publish from a batch", "leave `push` out, and push the outputs")


def publish(task: Task, told: Told) -> dict[str, Any]:
    """Publish the task's output in one commit."""
    refuse_without_publisher()
    raise AssertionError(task, told)
