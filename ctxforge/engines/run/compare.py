"""The verdict: an engine's log-probabilities against the plan's and against the misreadings'."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ctxforge.engines.run.readings import CONTROLS, PLANNED
from ctxforge.engines.run.table import Runner
from ctxforge.engines.run.types import RunResult, Status
from ctxforge.engines.run.worker import Answer

# An agreement counts where the nearest plain misreading is at least so many tolerances away.
_DISCRIMINATES = 10.0
# An engine computes a misreading where it is that much nearer to it than to the plan.
_RECOGNISED = 0.02


def compare(runner: Runner, answer: Answer, reference: Answer, configured_length: int | None) -> RunResult:
    """One engine's result.

    Args:
        runner: the engine's row.
        answer: what it computed.
        reference: the log-probabilities of transformers 5, with the readings of `readings.readings`.
        configured_length: max_position_embeddings, to compare with what the engine says it serves.
    """
    planned = reference.readings.get(PLANNED, reference.logprobs)
    positions = [position for position in answer.logprobs if position in planned]
    largest, mean = _differences(answer.logprobs, planned, positions)
    others = {
        name: _differences(values, planned, positions)[0]
        for name, values in reference.readings.items()
        if name in CONTROLS
    }
    control = min(others.values()) if others else None
    remarks: list[str] = []
    status: Status
    if not positions or not math.isfinite(largest):
        status = "failed"
        remarks.append("it gave no finite log-probability")
    elif largest > runner.tolerance:
        status = "differs"
        remarks.append(_what(answer, reference, positions, largest))
    elif control is not None and control < _DISCRIMINATES * runner.tolerance:
        status = "can't tell"
        remarks.append(f"a misread config would differ by {control:.2g} only: try more tokens or another text")
    else:
        status = "agrees"
    served = answer.facts.get("max_model_len")
    if served is not None and configured_length is not None and served > configured_length:
        remarks.append(f"it accepts {served} tokens, the config means {configured_length}: set the length yourself")
    for name in ("length", "vocabulary", "tokens"):
        fact = answer.facts.get(name) or (reference.facts.get(name) if name == "tokens" else None)
        if fact:
            remarks.append(str(fact))
    return RunResult(
        engine=runner.name,
        version=answer.version,
        status=status,
        max_difference=largest if positions else None,
        mean_difference=mean if positions else None,
        tokens=len(positions),
        detail="; ".join(remarks),
        control_difference=control,
        tolerance=runner.tolerance,
        served_length=served,
    )


def _differences(one: Mapping[int, float], other: Mapping[int, float], positions: list[int]) -> tuple[float, float]:
    """Largest and mean |difference| in nats over `positions`; infinite where a value is not finite."""
    found = [abs(one[position] - other[position]) for position in positions]
    if not found or not all(map(math.isfinite, found)):
        return math.inf, math.inf
    return max(found), math.fsum(found) / len(found)


def _what(answer: Answer, reference: Answer, positions: list[int], largest: float) -> str:
    """What the engine computes instead, where it is one of the known misreadings."""
    nearest = {
        name: _differences(answer.logprobs, values, positions)[0]
        for name, values in reference.readings.items()
        if name != PLANNED
    }
    name = min(nearest, key=lambda key: nearest[key], default=None)
    if name is not None and nearest[name] < _RECOGNISED * largest:
        return f"it computes the model with {name} (to {nearest[name]:.1g})"
    return "it computes something else"
