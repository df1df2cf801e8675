"""Intervals for what was measured: the paired bootstrap over documents or prompts, and Wilson's for proportions.

The unit that is resampled is the document or the prompt, never the token: tokens of one document are correlated, and
an interval over them would be several times too narrow. Numbers only, no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ctxforge.errors import InternalError

Array = npt.NDArray[np.float64]

RESAMPLES = 10_000
SEED = 20_231_031
CONFIDENCE = 0.95
FEWEST_UNITS = 8
BOOTSTRAP = "paired bootstrap"
WILSON = "Wilson"
UNDEFINED = "no interval: the source's own score is 0"
NOT_FINITE = "no interval: a value is not finite"
_BLOCK_ENTRIES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and the two-sided interval around it.

    Attributes:
        value: the estimate; not a number where there is nothing to estimate from.
        low: lower bound; None when there is no interval.
        high: upper bound; None likewise.
        units: documents or prompts behind the estimate.
        method: how the interval was made, or why there is none.
    """

    value: float
    low: float | None
    high: float | None
    units: int
    method: str

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high), or None when there is no interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def too_few(value: float, units: int) -> Interval:
    """The estimate without an interval, saying that the units are too few for one."""
    return Interval(value, None, None, units, f"too few for an interval: {units}, and {FEWEST_UNITS} are needed")


def wilson(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), which stays informative at 0 and at 100 %.

    20 of 20 gives [0.839, 1], 40 of 40 [0.912, 1].

    Raises:
        InternalError: more successes than trials, or a negative number.
    """
    if not 0 <= successes <= trials:
        raise InternalError(f"{successes} successes of {trials} trials.", "Please report this.")
    if trials == 0:
        return too_few(math.nan, 0)
    low, high = wilson_limits(successes / trials, trials, confidence=confidence)
    return Interval(successes / trials, low, high, trials, WILSON)


def wilson_limits(proportion: float, trials: float, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's limits for a proportion of `trials` equal trials; the number of trials may be an effective one."""
    z = _normal_quantile(confidence)
    shrunk = (proportion + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(proportion * (1 - proportion) / trials + (z / (2 * trials)) ** 2)
    # At 0 and 1 the bound is exactly that, which rounding must not miss.
    low = 0.0 if proportion == 0 else max(0.0, shrunk - half)
    high = 1.0 if proportion == 1 else min(1.0, shrunk + half)
    return low, high


def ratio_limits(
    result: float, results: float, source: float, sources: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Limits of a ratio of two proportions from Wilson's limits of each (MOVER, Donner and Zou 2012).

    The lower limit r solves `p - r q = sqrt((p - low_p)^2 + r^2 (high_q - q)^2)`, the upper one its mirror image. As
    for two independent samples, so for positively correlated pairs it is on the safe side. Unlike the bootstrap it
    stays informative where every trial succeeded.

    Args:
        result: proportion p over `results` trials.
        results: trials.
        source: proportion q > 0 over `sources` trials.
        sources: trials.
        confidence: two-sided.
    """
    low, high = wilson_limits(result, results, confidence=confidence)
    source_low, source_high = wilson_limits(source, sources, confidence=confidence)
    product = result * source
    constant, square = low * (2 * result - low), source_high * (2 * source - source_high)
    root = math.sqrt(max(0.0, product * product - constant * square))
    # The quadratic's root in the form that stands a vanishing leading coefficient.
    lower = constant / (product + root) if constant > 0 else 0.0
    constant, square = high * (2 * result - high), source_low * (2 * source - source_low)
    upper = (product + math.sqrt(max(0.0, product * product - constant * square))) / square
    return lower, upper


def paired_bootstrap(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    confidence: float = CONFIDENCE,
    widen: bool = True,
) -> tuple[Interval, ...]:
    """Percentile interval of the mean of every column, from the same resamples of the units for all columns.

    Args:
        values: [units, columns], or [units] for one column. Paired quantities (a result and its source on the same
            documents) belong into one call, as differences or as columns.
        weights: the same shape, such as predicted tokens: a column's estimate is then sum(w x) / sum(w), a ratio of
            sums. A unit with weight 0 is missing from that column. None weighs every unit the same.
        resamples: number of resamples.
        seed: of the resamples.
        confidence: two-sided.
        widen: correct the percentiles for few units, see `percentile_levels`.

    Returns:
        One interval a column. It has no bounds below `FEWEST_UNITS` units, and where a value is not finite.

    Raises:
        InternalError: shapes that do not fit, or a negative weight.
    """
    table, weight = as_columns(values, weights)
    estimates = weighted_means(table, weight)
    counts = [int(n) for n in (weight > 0).sum(0)]
    finite = [bool(np.isfinite(column[w > 0]).all()) for column, w in zip(table.T, weight.T, strict=True)]
    if not any(good and n >= FEWEST_UNITS for good, n in zip(finite, counts, strict=True)):
        return tuple(_without(float(e), n, good) for e, n, good in zip(estimates, counts, finite, strict=True))
    draws = bootstrap_draws(np.where(finite, table, 0.0), weight, resamples=resamples, seed=seed)
    found = []
    for column, (estimate, units, good) in enumerate(zip(estimates, counts, finite, strict=True)):
        if good and units >= FEWEST_UNITS:
            found.append(from_draws(float(estimate), draws[:, column], units, confidence=confidence, widen=widen))
        else:
            found.append(_without(float(estimate), units, good))
    return tuple(found)


def from_draws(
    value: float, draws: Array, units: int, *, confidence: float = CONFIDENCE, widen: bool = True
) -> Interval:
    """The percentile interval of a statistic from its bootstrap draws [resamples]; draws that are NaN are left out."""
    kept = draws[~np.isnan(draws)]
    if units < FEWEST_UNITS or kept.size == 0:
        return too_few(value, units)
    low, high = np.quantile(kept, percentile_levels(units, confidence=confidence, widen=widen))
    return Interval(value, float(low), float(high), units, f"{BOOTSTRAP}, {draws.size} resamples")


def percentile_levels(units: int, *, confidence: float = CONFIDENCE, widen: bool = True) -> tuple[float, float]:
    """The two percentiles of the draws that bound the interval, as fractions.

    The plain 2.5 % and 97.5 % cover too little for few units, because resampling underestimates the spread by
    sqrt((n-1)/n) and knows no Student's t: 89 % instead of 95 % for eight normal ones. `widen` takes the expanded
    percentiles of Hesterberg (arXiv 1411.5279): the level Phi(-sqrt(n/(n-1)) t(n-1)).
    """
    z = _normal_quantile(confidence)
    if widen and units > 1:
        z = math.sqrt(units / (units - 1)) * student_quantile(units - 1, confidence=confidence)
    level = NormalDist().cdf(-z)
    return level, 1 - level


def student_quantile(degrees: int, *, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t, to 1e-3 from seven degrees on (Abramowitz and Stegun 26.7.5)."""
    z = _normal_quantile(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(degrees) ** power for power, term in enumerate(terms, 1))


def bootstrap_draws(
    values: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Array:
    """Weighted mean of every column in every resample, [resamples, columns]; NaN where a resample holds no weight.

    All columns see the same resamples, so a statistic of several columns (a difference, a ratio, the least of them)
    may be taken row by row. The units are put into an order of their own first, so that the order in which they were
    measured changes nothing.
    """
    table, weight = as_columns(values, weights)
    table = np.where(weight > 0, table, 0.0)
    order = np.lexsort(np.concatenate([table, weight], axis=1).T[::-1])
    sums = np.concatenate([table * weight, weight], axis=1)[order]
    units, columns = table.shape
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // units)
    draws = np.empty((resamples, columns))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = resample_counts(units, size, generator) @ sums
        with np.errstate(invalid="ignore", divide="ignore"):
            np.divide(drawn[:, :columns], drawn[:, columns:], out=draws[start : start + size])
    return draws


def resample_counts(units: int, resamples: int, generator: np.random.Generator) -> Array:
    """How often each unit occurs in each resample, [resamples, units]; rows sum to `units`."""
    drawn = generator.integers(0, units, size=(resamples, units))
    drawn += np.arange(resamples)[:, None] * units
    counts = np.bincount(drawn.ravel(), minlength=resamples * units)
    return counts.reshape(resamples, units).astype(np.float64)


def weighted_means(values: Array, weights: Array) -> Array:
    """sum(w x) / sum(w) of every column; NaN for a column without weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Array = np.where(weights > 0, values * weights, 0.0).sum(0) / weights.sum(0)
    return means


def as_columns(values: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Array, Array]:
    """Values and weights as float64 [units, columns].

    Raises:
        InternalError: shapes that do not fit, no unit, or a weight that is negative or not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(table) if weights is None else np.asarray(weights, dtype=np.float64)
    if table.ndim == 1:
        table, weight = table[:, None], weight[:, None] if weight.ndim == 1 else weight
    if table.ndim != 2 or table.shape != weight.shape or table.size == 0:
        raise InternalError(
            f"values of shape {table.shape} and weights of shape {weight.shape} do not pair.", "Please report this."
        )
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise InternalError("a weight is negative or not finite.", "Please report this.")
    return table, weight


def _without(value: float, units: int, finite: bool) -> Interval:
    if finite:
        return too_few(value, units)
    return Interval(value, None, None, units, NOT_FINITE)


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
