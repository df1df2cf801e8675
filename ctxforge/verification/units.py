"""A measurement as units that depend on no other: what is kept of an interrupted run, and what processes share out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctxforge.verification.settings import VerifySettings, short_window_length

Kind = Literal["window", "short", "truncated", "haystack", "task", "protocol", "cache"]


@dataclass(frozen=True)
class Unit:
    """One piece of work on one model.

    Attributes:
        kind: a loss curve over one window; a short window; the end of a window with truncated contexts; one haystack
            of the retrieval grid; prompts of a task; a perplexity protocol; the cache check.
        index: number of the window, the haystack, or the prompts' seed.
        name: of the task or protocol.
        length: tokens: of the window, the longest context of the haystack, the prompts.
        tokens: about how many tokens go through the model, for sharing the work out evenly.
    """

    kind: Kind
    index: int = 0
    name: str = ""
    length: int = 0
    tokens: int = 0

    @property
    def key(self) -> str:
        """Its name in a journal; safe as a file name."""
        return "-".join(str(part) for part in (self.kind, self.name, self.length, self.index) if part != "")

    @property
    def title(self) -> str:
        """For a progress bar."""
        where = f"{self.name} at {self.length}" if self.kind == "task" else self.name
        return f"{_TITLES[self.kind]} {where or self.index + 1}"


_TITLES: dict[Kind, str] = {
    "window": "perplexity, window",
    "short": "short context, window",
    "truncated": "truncated context, window",
    "haystack": "retrieval, haystack",
    "task": "task",
    "protocol": "protocol",
    "cache": "cache check",
}


@dataclass(frozen=True)
class Scope:
    """What is measured of one model: the source needs less than the result.

    Attributes:
        curve: whether to run over the target length at all.
        retrieval_up_to: longest length of the retrieval grid and the tasks, in tokens.
        truncated: whether the tokens beyond the trained length are scored with truncated contexts too.
        far_context: whether short passes over every window are run for LongPPL.
        protocols: whether the perplexity protocols are run.
    """

    curve: bool = True
    retrieval_up_to: int | None = None
    truncated: bool = False
    far_context: bool = False
    protocols: bool = True


def plan_units(
    settings: VerifySettings,
    scope: Scope,
    trained_length: int,
    target_length: int,
    *,
    short_windows: int,
    prefix_invariant: bool,
) -> list[Unit]:
    """Everything that is to be computed on one model, in the order in which a single process does it.

    Args:
        settings: what was asked for.
        scope: what of it applies to this model.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        short_windows: windows of the short-context comparison that the text holds.
        prefix_invariant: whether one long pass contains the losses of shorter ones; the first short window is then
            read off the first long one.
    """
    beyond = target_length > trained_length
    units: list[Unit] = []
    if scope.curve:
        cost = 6 * target_length if scope.far_context and settings.far_context else target_length
        units += [Unit("window", i, "", target_length, cost) for i in range(settings.documents)]
    size = short_window_length(settings, trained_length, target_length)
    known = 1 if scope.curve and prefix_invariant else 0
    units += [Unit("short", i, "", size, size) for i in range(known, short_windows)]
    if scope.truncated and beyond:
        units += [Unit("truncated", i, "", target_length, 2 * target_length) for i in range(settings.documents)]
    longest = target_length if scope.retrieval_up_to is None else min(scope.retrieval_up_to, target_length)
    if settings.retrieval:
        units += [Unit("haystack", i, "", longest, longest) for i in range(settings.seeds)]
    for name in settings.tasks:
        for length in sorted({min(trained_length, longest), longest}):
            cost = length * settings.task_depths
            units += [Unit("task", i, name, length, cost) for i in range(settings.task_seeds)]
    if scope.protocols:
        units += [Unit("protocol", 0, name, target_length, 4 * target_length) for name in settings.protocols]
    return [*units, Unit("cache")]


def shared_out(units: list[Unit], processes: int) -> list[list[Unit]]:
    """Units by process: the largest first, each to the process with the least to do; the same in every process."""
    shares: list[list[Unit]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for unit in sorted(units, key=lambda unit: (-unit.tokens, unit.key)):
        least = loads.index(min(loads))
        shares[least].append(unit)
        loads[least] += max(1, unit.tokens)
    order = {unit.key: number for number, unit in enumerate(units)}
    return [sorted(share, key=lambda unit: order[unit.key]) for share in shares]
