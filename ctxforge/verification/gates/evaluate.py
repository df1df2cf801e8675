"""Judging gates on measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ctxforge.verification import statistics
from ctxforge.verification.gates.estimation import estimate
from ctxforge.verification.gates.measurement import Measurement
from ctxforge.verification.gates.power import too_weak
from ctxforge.verification.gates.types import Decided, Gate, GateResult, Judgement, Verdict
from ctxforge.verification.statistics import Interval

NOT_MEASURED = "it was not measured"


def judge(
    gates: Iterable[Gate],
    measurements: Mapping[str, Measurement],
    *,
    missing: Mapping[str, str] | None = None,
    strict: bool = False,
    resamples: int = statistics.RESAMPLES,
    seed: int = statistics.SEED,
) -> Judgement:
    """Apply every gate to its measurement.

    A gate that is not required is left out when its quantity was not measured, when it has too few units for an
    interval, and when its right-or-wrong answers could not have passed it whatever the result is (`too_weak`); a
    failure is a failure all the same.

    Args:
        gates: in the order in which they are reported.
        measurements: by the names in `Gate.measure`.
        missing: why a quantity was not measured, by the same names.
        strict: let inconclusive gates fail the verification.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    results, left_out = [], []
    for gate in gates:
        if gate.measure in measurements:
            result = judge_measurement(gate, measurements[gate.measure], resamples=resamples, seed=seed)
            if isinstance(result, str):
                left_out.append((gate.name, result))
            elif not gate.required and result.verdict == Verdict.INCONCLUSIVE and result.decided_by == "point":
                left_out.append((gate.name, result.words))
            else:
                results.append(result)
            continue
        reason = (missing or {}).get(gate.measure, NOT_MEASURED)
        if gate.required:
            results.append(GateResult(gate, Verdict.INCONCLUSIVE, None, "not measured", f"no value: {reason}"))
        else:
            left_out.append((gate.name, reason))
    return Judgement(tuple(results), tuple(left_out), strict)


def judge_measurement(
    gate: Gate, measurement: Measurement, *, resamples: int = statistics.RESAMPLES, seed: int = statistics.SEED
) -> GateResult | str:
    """One gate on its measurement, or why it is left out (see `judge`)."""
    result = judge_one(gate, estimate(measurement, resamples=resamples, seed=seed), measurement.unit)
    weak = "" if gate.required or result.verdict == Verdict.FAIL else too_weak(gate, measurement)
    return weak or result


def judge_one(gate: Gate, interval: Interval, unit: str = "unit") -> GateResult:
    """One gate on a value with its interval.

    The whole interval on the good side passes, the whole on the bad side fails, one that straddles the threshold is
    inconclusive. Without an interval (too few units) only a value beyond the gross limit is decided. An exact value
    is compared as it is. A value that is not finite although it was measured fails; one that cannot exist (a ratio to
    a source that scores 0) is inconclusive.
    """
    verdict, decided, reason = _decide(gate, interval)
    return GateResult(gate, verdict, interval, decided, f"{describe(gate, interval, unit)}: {reason}")


def holds(gate: Gate, value: float) -> bool:
    """Whether `value` is on the good side of the threshold; NaN is not."""
    return value <= gate.threshold if gate.direction == "at most" else value >= gate.threshold


def describe(gate: Gate, interval: Interval, unit: str = "unit") -> str:
    """`0.03 nats a token (95 % 0.02 to 0.04, 16 documents), to be at most 0.05`."""
    if gate.basis == "exact":
        spread = ""
    elif interval.bounds is None:
        spread = f" ({interval.units} {_plural(unit, interval.units)})"
    else:
        low, high = interval.bounds
        spread = f" (95 % {_number(low)} to {_number(high)}, {interval.units} {_plural(unit, interval.units)})"
    return f"{_number(interval.value)} {gate.quantity}{spread}, to be {gate.direction} {_number(gate.threshold)}"


def _decide(gate: Gate, interval: Interval) -> tuple[Verdict, Decided, str]:
    value = interval.value
    if gate.basis == "exact":
        good = holds(gate, value)
        return (Verdict.PASS, "exact", "holds") if good else (Verdict.FAIL, "exact", "does not hold")
    if interval.bounds is not None:
        low, high = interval.bounds
        worst, best = (high, low) if gate.direction == "at most" else (low, high)
        if holds(gate, worst):
            return Verdict.PASS, "interval", "the whole interval holds"
        if not holds(gate, best):
            return Verdict.FAIL, "interval", "the whole interval does not hold"
        return Verdict.INCONCLUSIVE, "interval", "the threshold lies inside the interval, more units would decide"
    if interval.method == statistics.NOT_FINITE:
        return Verdict.FAIL, "point", interval.method
    beyond = gate.gross is not None and (value > gate.gross if gate.direction == "at most" else value < gate.gross)
    if beyond and interval.units >= gate.gross_units:
        assert gate.gross is not None
        return Verdict.FAIL, "point", f"beyond {_number(gate.gross)}, which no number of units excuses"
    return Verdict.INCONCLUSIVE, "point", interval.method


def _number(value: float) -> str:
    return f"{value:.4g}"


def _plural(unit: str, count: int) -> str:
    return unit if count == 1 else f"{unit}s"
