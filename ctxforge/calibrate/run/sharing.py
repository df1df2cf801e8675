"""What several processes must agree on: how rows divide among them, what one of them found, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ctxforge.calibrate.parallel import ParallelOptions, Processes
from ctxforge.calibrate.recipes import CalibrationPlan
from ctxforge.calibrate.run.fitting import memory_of
from ctxforge.errors import UnsupportedError, UsageError

Found = TypeVar("Found")


def check_shares(plan: CalibrationPlan, options: ParallelOptions, world: int) -> None:
    """Refuse a plan that processes can't share, before they meet: one that left would be missed by the others.

    Args:
        plan: of the run.
        options: how processes share the work.
        world: number of processes that were launched.

    Raises:
        UsageError: a step's rows don't divide by the processes.
        UnsupportedError: LongCE where processes wait for each other within a step.
    """
    shares = max(1, world // max(1, options.context))
    for stage in plan.stages:
        if stage.rows % shares:
            raise UsageError(
                f"the {stage.rows} rows of a step can't be divided among {shares} processes",
                f"add --set rows.count={-(-plan.stages[-1].rows // shares) * shares}, or launch as many processes as"
                " divide them",
            )
    if plan.recipe.objective.kind == "longce" and (options.shard or options.context > 1):
        raise UnsupportedError(
            "LongCE's short windows are more on some processes than on others, which sharded models can't wait for",
            "leave --shard and --context out, or take objective.kind=ce",
        )


def from_main(processes: Processes, find: Callable[[], Found]) -> Found:
    """What the main process alone finds, in every process.

    Raises:
        CtxforgeError: what `find` raised, in every process.
    """
    found: list[Found] = []

    def keep() -> None:
        found.append(find())

    processes.on_main(keep)
    shared: Found = processes.everywhere(found[0] if found else None)
    return shared


def from_all(processes: Processes, value: Found) -> list[Found]:
    """Each process's value, in every process, by rank."""
    if processes.world == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def least_memory(processes: Processes) -> int | None:
    """Bytes that every process may take beside what it has: what fits must fit all, and in one way.

    None where one process can't know.
    """
    least = -processes.most(-(memory_of(processes.device) or 0))
    return least or None
