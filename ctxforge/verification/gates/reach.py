"""The effective length: how far the gates hold, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ctxforge.errors import InternalError
from ctxforge.lengths import format_length
from ctxforge.verification import statistics
from ctxforge.verification.gates.estimation import columns, combine
from ctxforge.verification.gates.evaluate import holds, judge_measurement
from ctxforge.verification.gates.measurement import Measurement
from ctxforge.verification.gates.types import Gate, GateResult
from ctxforge.verification.statistics import Array


@dataclass(frozen=True)
class EffectiveLength:
    """The largest measured length up to which every gate holds.

    Attributes:
        length: tokens; None when the gates fail at the shortest length already, or when nothing could be judged.
        low: lower end of the 95 % interval over the measured lengths; None when even the shortest may fail, or when
            there is no interval.
        high: upper end, likewise.
        has_interval: whether `low` and `high` are an interval.
        failed: gates that fail at the next length, by name; empty when every length holds.
        words: the same in one line.
    """

    length: int | None
    low: int | None
    high: int | None
    has_interval: bool
    failed: tuple[str, ...]
    words: str


def effective_length(
    gates: Sequence[Gate],
    by_length: Mapping[int, Mapping[str, Measurement]],
    *,
    resamples: int = statistics.RESAMPLES,
    seed: int = statistics.SEED,
) -> EffectiveLength:
    """Where the gates stop holding, relative to whatever the measurements compare with: the source at L0.

    A length counts when the values of all gates are on the good side there and at every shorter measured length. For
    the interval the units are resampled, the same ones at all lengths, and the largest such length is taken again
    each time (a length below the shortest stands for "none"); its percentiles are the bounds.

    Args:
        gates: those without a measurement at a length, or left out by `judge` there, are passed over.
        by_length: measurements by length in tokens and name. Units of one kind that carry the same label at two
            lengths are the same documents, or prompts of the same seed and depth.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InternalError: there is no length.
    """
    lengths = sorted(by_length)
    if not lengths:
        raise InternalError("an effective length needs a length.", "Please report this.")
    results: dict[int, list[GateResult]] = {}
    for n in lengths:
        found = [judge_measurement(g, by_length[n][g.measure], seed=seed) for g in gates if g.measure in by_length[n]]
        results[n] = [result for result in found if isinstance(result, GateResult)]
        if not results[n]:
            words = f"unknown: no gate could be judged at {format_length(n)}"
            return EffectiveLength(None, None, None, False, (), words)
    judged = {n: [result.gate for result in found] for n, found in results.items()}
    failed = {n: tuple(r.gate.name for r in found if not _good(r)) for n, found in results.items()}
    units = [
        result.interval.units
        for n, found in results.items()
        for result in found
        if result.interval is not None and by_length[n][result.gate.measure].unit != "none"
    ]
    reached = next((i for i, n in enumerate(lengths) if failed[n]), len(lengths))
    bounds = None
    if units and min(units) >= statistics.FEWEST_UNITS:
        passed = reached_draws(lengths, judged, by_length, resamples, seed)
        levels = statistics.percentile_levels(min(units))
        # Lengths are steps: a percentile is one of them, never between two.
        bounds = tuple(int(step) for step in np.quantile(passed, levels, method="inverted_cdf"))
    return _result(lengths, reached, bounds, failed, min(units, default=0))


def _good(result: GateResult) -> bool:
    return result.interval is not None and holds(result.gate, result.interval.value)


def reached_draws(
    lengths: Sequence[int],
    judged: Mapping[int, Sequence[Gate]],
    by_length: Mapping[int, Mapping[str, Measurement]],
    resamples: int,
    seed: int,
) -> Array:
    """Number of lengths reached in each resample, [resamples]."""
    good = np.ones((len(lengths), resamples), dtype=bool)
    chosen = [(i, gate, by_length[n][gate.measure]) for i, n in enumerate(lengths) for gate in judged[n]]
    for offset, unit in enumerate(("document", "prompt")):
        of_unit = [entry for entry in chosen if entry[2].unit == unit]
        if not of_unit:
            continue
        labels = tuple(dict.fromkeys(label for _, _, measurement in of_unit for label in measurement.labels))
        tables = [columns(measurement, labels) for _, _, measurement in of_unit]
        draws = statistics.bootstrap_draws(
            np.concatenate([values for values, _ in tables], axis=1),
            np.concatenate([weights for _, weights in tables], axis=1),
            resamples=resamples,
            seed=seed + offset,
        )
        at = 0
        for (i, gate, measurement), (values, _) in zip(of_unit, tables, strict=True):
            quantity = combine(measurement, draws[:, at : at + values.shape[1]])
            at += values.shape[1]
            with np.errstate(invalid="ignore"):
                good[i] &= quantity <= gate.threshold if gate.direction == "at most" else quantity >= gate.threshold
    for i, gate, measurement in chosen:
        if measurement.unit == "none":
            good[i] &= holds(gate, measurement.result.values[0])
    return np.asarray(np.logical_and.accumulate(good, axis=0).sum(0), dtype=np.float64)


def _result(
    lengths: Sequence[int],
    reached: int,
    bounds: tuple[int, ...] | None,
    failed: Mapping[int, tuple[str, ...]],
    units: int,
) -> EffectiveLength:
    def at(step: int) -> int | None:
        return lengths[step - 1] if step else None

    def name(step: int) -> str:
        length = at(step)
        return f"less than {format_length(lengths[0])}" if length is None else format_length(length)

    next_failed = failed[lengths[reached]] if reached < len(lengths) else ()
    if reached == 0:
        shortest = f"none: at {format_length(lengths[0])}, the shortest length measured"
        words = f"{shortest}, {', '.join(next_failed)} does not hold"
    elif reached == len(lengths):
        words = f"{name(reached)}, the longest length measured"
    else:
        words = f"{name(reached)}; at {format_length(lengths[reached])} {', '.join(next_failed)} does not hold"
    if bounds is None:
        words += f" (too few for an interval: {units}, and {statistics.FEWEST_UNITS} are needed)"
        return EffectiveLength(at(reached), None, None, False, next_failed, words)
    words += f" (95 % {name(bounds[0])} to {name(bounds[1])})"
    return EffectiveLength(at(reached), at(bounds[0]), at(bounds[1]), True, next_failed, words)
