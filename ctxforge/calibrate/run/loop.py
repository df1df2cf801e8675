"""The training loop: steps, measurements, states, and an end for which there may be several reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctxforge.calibrate.held_out import Chooser, HeldOut, HeldOutResult, Reference, measure
from ctxforge.calibrate.run.log import RunLog
from ctxforge.calibrate.run.optimiser import set_rate
from ctxforge.calibrate.run.schedule import rate_factor
from ctxforge.calibrate.run.signals import StopRequest
from ctxforge.calibrate.run.state import RunState, save_best, save_state
from ctxforge.calibrate.run.step import NotFiniteError, StepResult, Training, gradients
from ctxforge.errors import InterruptedRunError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Loop:
    """What `train` works with besides the steps themselves.

    Attributes:
        training: of the steps.
        held_out, reference: what is measured, and against what.
        folder: of the run.
        identity: of the run; see `RunState`.
        log: of the run.
        save_every: steps between states.
        at_rest: makes the model what the result will be; called before each measurement.
        progress: called with (words, steps done, steps).
    """

    training: Training
    held_out: HeldOut
    reference: Reference
    folder: Path
    identity: Mapping[str, str]
    log: RunLog
    save_every: int
    at_rest: Callable[[], None]
    progress: Progress


@dataclass(frozen=True)
class Trainings:
    """How a training ended.

    Attributes:
        step: steps done.
        tokens: trained on.
        seconds: of this process's part, measurements included.
        chooser: what was measured, and which step is the best.
        ended: why, in words.
    """

    step: int
    tokens: int
    seconds: float
    chooser: Chooser
    ended: str


def train(loop: Loop, state: RunState | None) -> Trainings:
    """Train from a state on, or from the start, until the steps are done or held-out scores say enough.

    Args:
        loop: see there.
        state: what model and optimiser were given by `load_state`; None at the start.

    Raises:
        InterruptedRunError: SIGTERM or Ctrl-C; the state of the last finished step is on disk.
        NotFiniteError: a loss or a gradient that is no number; the state before that step is on disk.
        ResourceError: a full disk or too little memory; the last state is on disk.
    """
    training, plan = loop.training, loop.training.plan
    steps = plan.recipe.steps
    held_out = plan.recipe.held_out
    began = time.monotonic()
    if state is None:
        chooser = Chooser(held_out.allowed_short, held_out.patience)
        done, tokens = 0, 0
        _measure(loop, chooser, 0)
        _save(loop, RunState(0, 0, loop.identity, chooser.document()))
    else:
        chooser, done, tokens = Chooser.from_document(state.chooser), state.step, state.tokens
    saved = done
    training.prepared.inner.train()
    with StopRequest() as stop:
        while done < steps and chooser.stop is None:
            start = time.monotonic()
            try:
                seen = _step(training, done)
            except NotFiniteError:
                _save(loop, RunState(done, tokens, loop.identity, chooser.document()))
                raise
            done, tokens = done + 1, tokens + seen.tokens
            _report(loop, done, seen, time.monotonic() - start)
            if done % plan.every == 0 or done == steps:
                _measure(loop, chooser, done)
                training.prepared.inner.train()
            asked = training.processes.most(int(stop.asked)) > 0
            if asked or done == steps or chooser.stop is not None or done - saved >= loop.save_every:
                _save(loop, RunState(done, tokens, loop.identity, chooser.document()))
                saved = done
            if asked and done < steps:
                raise InterruptedRunError(
                    f"stopped after step {done} of {steps}", "run the same command again to go on from there"
                )
    return Trainings(done, tokens, time.monotonic() - began, chooser, chooser.stop or f"all {steps} steps are done")


def _step(training: Training, done: int) -> StepResult:
    set_rate(training.prepared.optimiser, rate_factor(training.plan, done))
    seen = gradients(training, done)
    training.prepared.optimiser.step()
    return seen


def _measure(loop: Loop, chooser: Chooser, done: int) -> HeldOutResult:
    """Measure the model as it stands; the best so far is kept on disk."""
    processes, prepared = loop.training.processes, loop.training.prepared
    loop.progress("measuring held-out text", done, loop.training.plan.recipe.steps)
    loop.at_rest()

    def add(values: list[float]) -> list[float]:
        return [processes.total(value) for value in values]

    found = measure(
        prepared.inner,
        loop.held_out,
        loop.reference,
        rank=processes.data_rank,
        world=processes.data_world,
        add=add if processes.world > 1 else list,
    )
    best = chooser.add(done, found)
    loop.log.write("held_out", done, {**found.document(), "score": chooser.score(found), "best": best})
    if best:
        save_best(loop.folder, processes, prepared, {"step": done, "held_out": found.document()})
    return found


def _save(loop: Loop, state: RunState) -> None:
    save_state(loop.folder, loop.training.processes, loop.training.prepared, state)
    loop.log.write("saved", state.step, {})


def _report(loop: Loop, done: int, seen: StepResult, seconds: float) -> None:
    memory = memory_used(loop.training.processes.device)
    speed = seen.tokens / max(seconds, 1e-9)
    values: dict[str, Any] = {
        "loss": seen.loss,
        "tokens": seen.tokens,
        "counted": seen.counted,
        "gradient_norm": seen.norm,
        **({} if seen.apart is None else {"restoration": seen.apart}),
        "rate": rate_factor(loop.training.plan, done - 1),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(speed, 1),
        "memory_bytes": memory,
    }
    loop.log.write("step", done, values)
    words = f"loss {seen.loss:.3f}, {speed:,.0f} tokens/s, {memory / 2**30:.1f} GiB"
    loop.progress(words, done, loop.training.plan.recipe.steps)


def memory_used(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU; what this process has resident otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import psutil  # type: ignore[import-untyped]

        return int(psutil.Process().memory_info().rss)
    except (ImportError, OSError):
        return 0
