"""Intervals against goldens, brute force, known distributions and properties that any interval has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.errors import InternalError
from ctxforge.verification import statistics
from ctxforge.verification.statistics import (
    Interval,
    bootstrap_draws,
    from_draws,
    paired_bootstrap,
    percentile_levels,
    ratio_limits,
    resample_counts,
    student_quantile,
    wilson,
)

# Sixteenths, so that a shift by a whole number is exact and ties stay ties.
SIXTEENTHS = st.integers(-512, 512).map(lambda n: n / 16)


def bounded(interval: Interval) -> tuple[float, float]:
    assert interval.bounds is not None, interval.method
    return interval.bounds


# Two-sided 95 % from published tables: Wilson for 20/20 and 40/40 as in the protocol, the others from
# Brown, Cai and DasGupta's formula worked by hand.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (20, 20, 0.8389, 1.0),
        (40, 40, 0.9124, 1.0),
        (0, 20, 0.0, 0.1611),
        (8, 10, 0.4902, 0.9433),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_goldens(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found.value == successes / trials
    assert bounded(found) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    """The limits are where the score test just does not reject: |p - x/n| = z sqrt(p (1 - p) / n)."""
    for successes, trials in [(1, 9), (13, 20), (199, 200)]:
        for p in bounded(wilson(successes, trials)):
            assert abs(p - successes / trials) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / trials))


def test_wilson_covers() -> None:
    """Exact coverage by summing the binomial distribution: on average 95 % over p, never below 91 % inside."""
    trials = 40
    covered = []
    for p in np.linspace(0.05, 0.95, 91):
        inside = 0.0
        for k in range(trials + 1):
            low, high = bounded(wilson(k, trials))
            inside += math.comb(trials, k) * p**k * (1 - p) ** (trials - k) * (low <= p <= high)
        covered.append(inside)
    assert 0.945 < float(np.mean(covered)) < 0.96
    assert min(covered) > 0.91


def test_wilson_refuses_the_impossible_and_says_when_there_is_nothing() -> None:
    with pytest.raises(InternalError):
        wilson(3, 2)
    assert wilson(0, 0).bounds is None


# From t tables.
@pytest.mark.parametrize(
    ("degrees", "quantile"), [(7, 2.364624), (11, 2.200985), (15, 2.131450), (31, 2.039513), (63, 1.998341)]
)
def test_student_quantile_goldens(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_percentiles_are_wider_for_few_units_and_plain_for_many() -> None:
    assert percentile_levels(8, widen=False) == pytest.approx((0.025, 0.975))
    assert percentile_levels(8)[0] == pytest.approx(0.0057, abs=1e-4)
    assert percentile_levels(100_000) == pytest.approx((0.025, 0.975), abs=1e-5)


def test_equals_a_plain_loop_over_the_same_resamples() -> None:
    rng = np.random.default_rng(1)
    values = np.sort(rng.normal(size=(11, 3)), axis=0)  # sorted, as the units are put in order first
    weights = np.ones((11, 3))
    drawn = np.random.default_rng(7).integers(0, 11, size=(400, 11))
    loop = np.array([[sum(values[i, c] for i in row) / 11 for c in range(3)] for row in drawn])
    assert bootstrap_draws(values, weights, resamples=400, seed=7) == pytest.approx(loop, abs=1e-12)
    found = paired_bootstrap(values, resamples=400, seed=7, widen=False)
    for column, interval in enumerate(found):
        assert bounded(interval) == pytest.approx(tuple(np.percentile(loop[:, column], [2.5, 97.5])), abs=1e-12)
        assert interval.value == pytest.approx(values[:, column].mean())
        assert interval.units == 11


def test_weights_are_a_ratio_of_sums_as_in_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    values = np.sort(rng.normal(size=12))
    weights = rng.integers(1, 2000, size=12).astype(float)
    drawn = np.random.default_rng(3).integers(0, 12, size=(300, 12))
    loop = [sum(weights[i] * values[i] for i in row) / sum(weights[i] for i in row) for row in drawn]
    assert bootstrap_draws(values, weights, resamples=300, seed=3)[:, 0] == pytest.approx(np.array(loop), abs=1e-12)
    (found,) = paired_bootstrap(values, weights)
    assert found.value == pytest.approx(float((weights * values).sum() / weights.sum()))
    assert found.value != pytest.approx(values.mean(), abs=1e-3), "the control: weights matter here"


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=(9, 2))
    whole = bootstrap_draws(values, resamples=500)
    monkeypatch.setattr(statistics, "_BLOCK_ENTRIES", 7 * 9)
    assert bootstrap_draws(values, resamples=500) == pytest.approx(whole, abs=1e-13)


def test_resample_counts_are_multinomial() -> None:
    counts = resample_counts(10, 20_000, np.random.default_rng(0))
    assert (counts.sum(1) == 10).all()
    # Count of one unit: binomial(10, 1/10), so mean 1 and variance 0.9.
    assert counts.mean(0) == pytest.approx(np.ones(10), abs=0.03)
    assert counts.var(0) == pytest.approx(np.full(10, 0.9), abs=0.04)


@pytest.mark.parametrize(
    ("units", "distribution", "least"),
    [(8, "normal", 0.93), (16, "normal", 0.93), (64, "normal", 0.93), (64, "lognormal", 0.93)],
)
def test_interval_covers_the_truth(units: int, distribution: str, least: float) -> None:
    covered, total = _coverage(units, distribution, widen=True)
    assert least <= covered / total <= 0.97


def test_the_plain_percentiles_would_not_cover_for_few_units() -> None:
    """The control of the above: without the correction eight units cover 89 %."""
    covered, total = _coverage(8, "normal", widen=False)
    assert 0.86 < covered / total < 0.915


def test_tokens_as_units_would_not_cover() -> None:
    """Tokens of one document share an offset; resampling them makes an interval that misses the truth most times."""
    rng = np.random.default_rng(8)
    inside = {"tokens": 0, "documents": 0}
    for draw in range(200):
        losses = rng.normal(size=(16, 1)) + rng.normal(size=(16, 50))
        for unit, values in (("tokens", losses.reshape(-1)), ("documents", losses.mean(1))):
            low, high = bounded(paired_bootstrap(values, resamples=1000, seed=draw)[0])
            inside[unit] += low <= 0 <= high
    assert inside["documents"] / 200 > 0.9
    assert inside["tokens"] / 200 < 0.5


def _coverage(units: int, distribution: str, *, widen: bool) -> tuple[int, int]:
    rng = np.random.default_rng(20)
    covered = total = 0
    for draw in range(10):
        shape = units, 200
        if distribution == "normal":
            values, truth = rng.normal(3.0, 0.5, size=shape), 3.0
        else:
            values, truth = rng.lognormal(0.0, 0.5, size=shape), math.exp(0.125)
        for found in paired_bootstrap(values, resamples=4000, seed=draw, widen=widen):
            low, high = bounded(found)
            covered += low <= truth <= high
            total += 1
    return covered, total


def test_shuffled_pairing_widens_the_interval() -> None:
    """Differences of the same documents know their mean far better than differences of strangers."""
    rng = np.random.default_rng(5)
    source = rng.normal(2.5, 0.6, size=32)
    result = source + 0.03 + rng.normal(0, 0.02, size=32)
    low, high = bounded(paired_bootstrap(result - source)[0])
    low_shuffled, high_shuffled = bounded(paired_bootstrap(result - rng.permutation(source))[0])
    assert high - low < 0.03
    assert high_shuffled - low_shuffled > 10 * (high - low)


def test_columns_share_their_resamples() -> None:
    """So a difference taken draw by draw is the draw of the difference."""
    rng = np.random.default_rng(6)
    source, result = rng.normal(size=(2, 20))
    together = bootstrap_draws(np.stack([result, source, result - source], axis=1), resamples=50)
    assert together[:, 0] - together[:, 1] == pytest.approx(together[:, 2], abs=1e-12)


@pytest.mark.parametrize("units", [1, 7])
def test_too_few_units_have_no_interval_and_say_so(units: int) -> None:
    (found,) = paired_bootstrap(np.arange(float(units)))
    assert found.value == (units - 1) / 2
    assert found.bounds is None
    assert (found.low, found.high) == (None, None)
    assert f"too few for an interval: {units}" in found.method


def test_eight_units_have_one() -> None:
    assert paired_bootstrap(np.arange(8.0))[0].bounds is not None


def test_missing_units_count_for_their_column_alone() -> None:
    values = np.tile(np.arange(10.0)[:, None], (1, 2))
    weights = np.ones((10, 2))
    weights[5:, 1] = 0
    values[5:, 1] = math.nan  # never looked at
    full, half = paired_bootstrap(values, weights)
    assert (full.units, full.value) == (10, 4.5)
    assert full.bounds is not None
    assert (half.units, half.value) == (5, 2.0)
    assert half.bounds is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_takes_the_interval_of_its_column_alone(bad: float) -> None:
    values = np.tile(np.arange(10.0)[:, None], (1, 2))
    values[3, 0] = bad
    broken, whole = paired_bootstrap(values)
    assert not math.isfinite(broken.value)
    assert "not finite" in broken.method
    assert broken.bounds is None
    assert bounded(whole) == bounded(paired_bootstrap(np.arange(10.0))[0])


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, -1.0]), ([1.0, 2.0], [1.0, math.nan])]
)
def test_what_does_not_pair_is_refused(values: list[float], weights: list[float] | None) -> None:
    with pytest.raises(InternalError):
        paired_bootstrap(values, weights)


def test_from_draws_leaves_undefined_draws_out() -> None:
    draws = np.concatenate([np.linspace(0, 1, 1001), np.full(50, math.nan)])
    assert bounded(from_draws(0.5, draws, 100_000)) == pytest.approx((0.025, 0.975), abs=1e-3)
    assert from_draws(0.5, np.full(9, math.nan), 20).bounds is None


# The closed form against bisection of the equation it solves.
@pytest.mark.parametrize(
    ("p", "n", "q", "m"), [(0.9, 40, 0.95, 40), (1.0, 20, 1.0, 20), (0.0, 20, 0.5, 20), (0.3, 12, 0.1, 20)]
)
def test_ratio_limits_solve_their_equation(p: float, n: int, q: float, m: int) -> None:
    low, high = ratio_limits(p, n, q, m)
    p_low, p_high = statistics.wilson_limits(p, n)
    q_low, q_high = statistics.wilson_limits(q, m)
    assert low == pytest.approx(_bisect(lambda r: p - r * q - math.hypot(p - p_low, r * (q_high - q)), 0, 50), abs=1e-6)
    assert high == pytest.approx(
        _bisect(lambda r: p - r * q + math.hypot(p_high - p, r * (q - q_low)), 0, 50), abs=1e-6
    )
    assert low <= p / q <= high


def test_ratio_limits_cover() -> None:
    rng = np.random.default_rng(9)
    inside = 0
    for _ in range(2000):
        a, b = rng.binomial(20, 0.8), rng.binomial(20, 0.9)
        if b:
            low, high = ratio_limits(a / 20, 20, b / 20, 20)
            inside += low <= 0.8 / 0.9 <= high
    assert inside / 2000 > 0.935


def _bisect(function, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
    """The first sign change of a function that falls from positive."""
    for step in np.linspace(low, high, 100_001)[1:]:
        if function(float(step)) < 0:
            low, high = float(step) - (high - low) / 100_000, float(step)
            break
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


@settings(max_examples=60, deadline=None)
@given(st.lists(SIXTEENTHS, min_size=8, max_size=30), st.integers(-100, 100))
def test_shifting_the_values_shifts_the_interval(values: list[float], shift: int) -> None:
    before = paired_bootstrap(values, resamples=300)[0]
    after = paired_bootstrap([value + shift for value in values], resamples=300)[0]
    assert after.value == pytest.approx(before.value + shift, abs=1e-9)
    assert bounded(after) == pytest.approx(tuple(b + shift for b in bounded(before)), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIXTEENTHS, st.integers(1, 50)), min_size=8, max_size=30), st.randoms())
def test_the_order_of_the_units_changes_nothing(units: list[tuple[float, int]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = units.copy()
    random.shuffle(shuffled)
    first, second = (
        paired_bootstrap([v for v, _ in some], [float(w) for _, w in some], resamples=200)[0]
        for some in (units, shuffled)
    )
    assert bounded(first) == bounded(second)
    assert first.value == pytest.approx(second.value, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(SIXTEENTHS, min_size=8, max_size=30))
def test_bounds_are_ordered_inside_the_data_and_scale(values: list[float]) -> None:
    found = paired_bootstrap(values, resamples=300)[0]
    low, high = bounded(found)
    slack = 1e-9
    assert min(values) - slack <= low <= high <= max(values) + slack
    mirrored = paired_bootstrap([-2 * value for value in values], resamples=300)[0]
    assert mirrored.value == pytest.approx(-2 * found.value)
    if len(set(values)) == 1:
        assert low == pytest.approx(high)


@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_bounds_hold_the_proportion(a: int, b: int) -> None:
    if a + b == 0:
        return
    found = wilson(a, a + b)
    low, high = bounded(found)
    assert 0 <= low <= found.value <= high <= 1
    mirrored_low, mirrored_high = bounded(wilson(b, a + b))
    assert (mirrored_low, mirrored_high) == pytest.approx((1 - high, 1 - low), abs=1e-12)
