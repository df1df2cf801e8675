"""From a measurement to its interval: every measurement becomes columns of one table, so all share their resamples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ctxforge.verification import statistics
from ctxforge.verification.gates.measurement import Measurement, Sample
from ctxforge.verification.statistics import Array, Interval


def estimate(
    measurement: Measurement, *, resamples: int = statistics.RESAMPLES, seed: int = statistics.SEED
) -> Interval:
    """The measurement's value and its 95 % interval.

    Means, differences and ratios: paired bootstrap over the units. Proportions of right answers: Wilson. Ratios of
    proportions: the bootstrap's interval, widened to `statistics.ratio_limits` where that reaches further, because
    resampling twenty right answers gives twenty right answers. The worst of several groups: the bootstrap of the
    worst one, and as few units as its smallest group has.
    """
    if measurement.unit == "none":
        value = measurement.result.values[0]
        return Interval(value, value, value, 1, "exact")
    values, weights = columns(measurement, measurement.labels)
    sides = len(measurement.samples)
    # A unit counts where every side of it was measured.
    units = min(int((weights[:, i : i + sides] > 0).all(1).sum()) for i in range(0, weights.shape[1], sides))
    if units == 0:
        return statistics.too_few(math.nan, 0)
    if not np.isfinite(values[weights > 0]).all():
        return Interval(math.nan, None, None, units, statistics.NOT_FINITE)
    value = float(combine(measurement, statistics.weighted_means(values, weights)))
    if math.isnan(value):
        return Interval(value, None, None, units, statistics.UNDEFINED)
    if units < statistics.FEWEST_UNITS:
        return statistics.too_few(value, units)
    if measurement.outcomes and measurement.relation == "value" and measurement.groups is None:
        return statistics.wilson(round(value * units), units)
    draws = combine(measurement, statistics.bootstrap_draws(values, weights, resamples=resamples, seed=seed))
    found = statistics.from_draws(value, draws, units)
    if measurement.outcomes and found.bounds is not None:
        return _widened(measurement, found, values, weights)
    return found


def columns(measurement: Measurement, labels: Sequence[str]) -> tuple[Array, Array]:
    """Values and weights [units, groups * sides], in the order of `labels`; what a column does not hold weighs 0.

    The sides of a group stand beside each other: result, then source.
    """
    row = {label: i for i, label in enumerate(labels)}
    at = [row[label] for label in measurement.labels]
    shape = len(labels), len(measurement.group_names) * len(measurement.samples)
    values, weights = np.zeros(shape), np.zeros(shape)
    column = 0
    for group in measurement.group_names:
        inside = np.array([name == group for name in measurement.groups or [group] * len(at)])
        for sample in measurement.samples:
            values[at, column] = sample.values
            weights[at, column] = np.where(inside, _weights(sample), 0.0)
            column += 1
    return values, weights


def combine(measurement: Measurement, means: Array) -> Array:
    """The quantity from the means of its columns, [..., groups * sides] to [...].

    A group that a resample does not hold is passed over. NaN where nothing remains, and where the source's score, by
    which a ratio divides, is 0.
    """
    sides = len(measurement.samples)
    split = means.reshape(*means.shape[:-1], -1, sides)
    if measurement.relation == "value":
        found = split[..., 0]
    elif measurement.relation == "difference":
        found = split[..., 0] - split[..., 1]
    else:
        found = np.divide(split[..., 0], split[..., 1], out=np.full(split.shape[:-1], np.nan), where=split[..., 1] != 0)
    if measurement.groups is None:
        return np.asarray(found[..., 0])
    # fmin and fmax pass over NaN without a warning where all are.
    return np.asarray((np.fmin if measurement.worst == "lowest" else np.fmax).reduce(found, axis=-1))


def _weights(sample: Sample) -> Array:
    return np.ones(len(sample.values)) if sample.weights is None else np.asarray(sample.weights, dtype=np.float64)


def _widened(measurement: Measurement, found: Interval, values: Array, weights: Array) -> Interval:
    """`found`, at least as wide as the limits for proportions of the group that decides it."""
    means, trials = statistics.weighted_means(values, weights), weights.sum(0)
    sides = len(measurement.samples)
    for first in range(0, means.size, sides):
        part = means[first : first + sides]
        share = float(part[0]) if sides == 1 else float(part[0] / part[1]) if part[1] else math.nan
        if share != found.value:
            continue
        if sides == 1:
            limits = statistics.wilson_limits(float(part[0]), trials[first])
        else:
            limits = statistics.ratio_limits(float(part[0]), trials[first], float(part[1]), trials[first + 1])
        assert found.low is not None
        assert found.high is not None
        low, high = min(found.low, limits[0]), max(found.high, limits[1])
        return Interval(found.value, low, high, found.units, f"{found.method}, no narrower than Wilson's limits")
    return found
