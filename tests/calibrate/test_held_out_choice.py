"""Which step is the best, when to stop, and that a record of scores goes on where it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge.calibrate.held_out import Chooser, HeldOutResult
from ctxforge.calibrate.held_out.choice import paired_error
from ctxforge.errors import CheckpointError, UsageError
from ctxforge.verification.gates.defaults import default_gates
from tests.calibrate.held_out_builders import result_of

nats = st.floats(-5, 5, allow_nan=False)
results = st.builds(result_of, nats, nats)
spoilt = st.builds(result_of, st.sampled_from([math.nan, math.inf, -math.inf]), nats)


def test_scores() -> None:
    chooser = Chooser()
    assert chooser.score(result_of(0.3, 0.02)) == 0.3
    assert chooser.score(result_of(0.3, -1.0)) == 0.3
    assert chooser.score(result_of(0.3, 0.12)) == pytest.approx(0.2, abs=1e-12)
    assert Chooser(allowed_short=0.1).score(result_of(0.3, 0.12)) == pytest.approx(0.28, abs=1e-12)
    assert chooser.score(result_of(None, 0.12, full_nll=2.5)) == pytest.approx(-2.6, abs=1e-12)


def test_the_allowed_regression_is_the_gate_s() -> None:
    gate = next(gate for gate in default_gates(calibrated=True) if gate.name == "short_nll")
    assert Chooser().allowed_short == gate.threshold


def test_a_better_long_loss_does_not_pay_for_a_ruined_short_one() -> None:
    chooser = Chooser()
    assert chooser.best_step is chooser.best is chooser.stop is None
    assert chooser.add(0, result_of(-1.0, 0.4))
    assert chooser.add(10, result_of(0.10, 0.01))
    assert not chooser.add(20, result_of(0.50, 0.60))
    assert chooser.best_step == 10
    assert chooser.best == result_of(0.10, 0.01)
    # The control: without the short side the ruined step would be taken.
    careless = Chooser(allowed_short=10)
    assert [careless.add(step, one) for step, one in enumerate([result_of(0.10, 0.01), result_of(0.50, 0.60)])] == [
        True,
        True,
    ]


def test_patience() -> None:
    chooser = Chooser(patience=2)
    said = []
    for step, use in enumerate([0.1, 0.2, 0.2, 0.19, 0.3, 0.1, 0.0]):
        chooser.add(step, result_of(use))
        said.append(chooser.stop)
    assert said[:3] == [None] * 3
    assert said[3] == "no better held-out score in 2 measurements since step 1"
    # A loop that went on all the same may find a better step.
    assert said[4:] == [None, None, "no better held-out score in 2 measurements since step 4"]
    endless = Chooser(patience=None)
    for step in range(50):
        endless.add(step, result_of(-step))
    assert endless.stop is None


def test_small_gains_do_not_count_for_patience_but_for_the_best() -> None:
    chooser = Chooser(patience=3, least=0.1)
    taken = [chooser.add(step, result_of(0.04 * step)) for step in range(4)]
    assert taken == [True] * 4
    assert chooser.stop is None  # 0.12 is 0.1 better than 0
    for step in (4, 5, 6):
        chooser.add(step, result_of(0.13 + step / 1000))
    assert chooser.best_step == 6
    assert chooser.stop == "no better held-out score in 3 measurements since step 3"


def test_equal_scores_keep_the_later_step_but_not_for_the_first() -> None:
    chooser = Chooser()
    assert [chooser.add(step, result_of(use)) for step, use in ((0, 0.1), (10, 0.1), (20, 0.2), (30, 0.2))] == [
        True,
        False,
        True,
        True,
    ]
    assert (chooser.best_step, chooser.top_step) == (30, 20)


def windowed(long: list[float], short: list[float] | None = None, tokens: tuple[int, ...] = ()) -> HeldOutResult:
    """A result with these losses of its windows against a source with 2 nats everywhere."""
    counts = tokens or (100,) * len(long)
    short = short or [2.0, 2.0]
    use = 2 - sum(loss * count for loss, count in zip(long, counts, strict=True)) / sum(counts)
    return result_of(
        use,
        sum(short) / len(short) - 2,
        long_windows=tuple(zip(long, counts, strict=True)),
        short_windows=tuple((loss, 50) for loss in short),
    )


def test_a_later_step_within_the_standard_error_of_the_highest_is_the_best() -> None:
    start, high = windowed([3.0, 3.0, 3.0, 3.0]), windowed([1.0, 1.2, 1.4, 1.0])
    # Differences to `high` of 0.12, -0.08, 0.06, -0.06 have a mean of 0.01 and a standard error of 0.0484.
    near = windowed([1.12, 1.12, 1.46, 0.94])
    # The same mean, but the same in each window: an error of 0, so it is worse.
    worse = windowed([1.01, 1.21, 1.41, 1.01])
    chooser = Chooser()
    assert [chooser.add(step, one) for step, one in enumerate([start, high, worse])] == [True, True, False]
    assert chooser.add(3, near)
    assert (chooser.best_step, chooser.top_step) == (3, 1)
    # Later ones are held against the highest, not the best, or they could drift down.
    below = windowed([1.05, 1.25, 1.45, 1.05])
    assert chooser.score(near) - chooser.score(below) < paired_error(near.long_windows, below.long_windows)
    assert not chooser.add(4, below)
    assert chooser.best_step == 3


def test_within_the_error_of_the_first_measurement_nothing_is_gained() -> None:
    start, near = windowed([1.0, 1.2, 1.4, 1.0]), windowed([1.12, 1.12, 1.46, 0.94])
    chooser = Chooser()
    assert chooser.add(0, start)
    assert not chooser.add(1, near)  # a control: it is near enough to any other
    other = Chooser()
    assert [other.add(step, one) for step, one in enumerate([windowed([3.0] * 4), start, near])] == [True] * 3


def test_the_error_of_short_windows_counts_where_short_text_costs() -> None:
    start, high = windowed([3.0] * 2), windowed([1.0, 1.0], [2.1, 2.1])
    near = windowed([1.0, 1.0], [2.16, 2.05])  # 0.005 worse, with an error of 0.055
    assert [Chooser().add(0, start), *(_added(start, high, near))] == [True, True, True]
    # Below the allowed regression short windows are not in the score, nor in its error.
    free = windowed([1.005, 1.005], [2.01, 1.9])
    assert _added(start, windowed([1.0, 1.0], [1.9, 2.01]), free) == [True, False]


def _added(start: HeldOutResult, *others: HeldOutResult) -> list[bool]:
    chooser = Chooser()
    chooser.add(0, start)
    return [chooser.add(step, one) for step, one in enumerate(others, 1)]


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.integers(1, 999)), min_size=2, max_size=9))
def test_the_paired_error_is_that_of_numpy(rows: list[tuple[float, float, int]]) -> None:
    ours, theirs, counts = (np.array(column) for column in zip(*rows, strict=True))
    found = paired_error(
        tuple(zip(ours.tolist(), counts.tolist(), strict=True)),
        tuple(zip(theirs.tolist(), counts.tolist(), strict=True)),
    )
    share, apart = counts / counts.sum(), ours - theirs
    variance = (share**2 * (apart - (share * apart).sum()) ** 2).sum() * len(rows) / (len(rows) - 1)
    assert found == pytest.approx(np.sqrt(variance), abs=1e-12)
    if len(set(counts.tolist())) == 1:
        assert found == pytest.approx(apart.std(ddof=1) / np.sqrt(len(rows)), abs=1e-12)


def test_the_paired_error_of_one_window_is_none() -> None:
    assert paired_error(((1.0, 5),), ((2.0, 5),)) == 0
    assert paired_error((), ()) == 0


@pytest.mark.parametrize("name", ["use", "long_nll", "tail_nll", "short_nll", "short_regression"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_the_best(name: str, value: float) -> None:
    fields = {**vars(result_of(9.0)), name: value}
    bad = HeldOutResult(**fields)
    chooser = Chooser()
    assert not chooser.add(7, bad)
    assert chooser.best is None
    assert chooser.stop == "a held-out loss at step 7 is not a finite number"
    assert chooser.add(8, result_of(-3.0))
    assert not chooser.add(9, bad)
    assert chooser.best_step == 8
    assert chooser.stop is not None
    assert Chooser.from_document(json.loads(json.dumps(chooser.document(), allow_nan=False))).stop == chooser.stop
    back = HeldOutResult.from_document(json.loads(json.dumps(bad.document(), allow_nan=False)))
    assert math.isnan(getattr(back, name))
    assert not back.finite


@given(st.lists(st.tuples(st.integers(0, 1000), results | spoilt), max_size=20), st.floats(0, 3), st.data())
def test_the_best_has_the_highest_score_in_any_order(
    measured: list[tuple[int, HeldOutResult]], allowed: float, data: st.DataObject
) -> None:
    def score(result: HeldOutResult) -> float:
        assert result.use is not None
        return result.use - max(0.0, result.short_regression - allowed)

    for order in (measured, data.draw(st.permutations(measured))):
        chooser = Chooser(allowed, least=data.draw(st.floats(0, 2)))
        best: tuple[float, int] | None = None
        first: float | None = None
        for step, result in order:
            here = score(result)
            better = math.isfinite(here) and (
                best is None or here > best[0] or (here == best[0] and first is not None and here > first)
            )
            assert chooser.add(step, result) == better
            first = here if first is None and math.isfinite(here) else first
            best = (here, step) if better else best
        if best is None:
            assert chooser.best is chooser.best_step is None
            continue
        assert (chooser.best_score, chooser.best_step) == best
        assert chooser.best is not None
        assert score(chooser.best) == best[0] == max(score(one) for _, one in order if math.isfinite(score(one)))


@given(st.lists(results | spoilt, max_size=12), st.integers(0, 12), st.none() | st.integers(1, 4), st.floats(0, 1))
def test_a_resumed_chooser_goes_on_as_if_nothing_had_been(
    measured: list[HeldOutResult], cut: int, patience: int | None, least: float
) -> None:
    straight, first = Chooser(0.05, patience, least), Chooser(0.05, patience, least)
    for step, result in enumerate(measured[:cut]):
        straight.add(step, result)
        first.add(step, result)
    second = Chooser.from_document(json.loads(json.dumps(first.document(), allow_nan=False)))
    assert second.document() == first.document()
    for step, result in enumerate(measured[cut:], len(measured[:cut])):
        assert straight.add(step, result) == second.add(step, result)
        assert straight.stop == second.stop
    assert second.document() == straight.document()
    assert (second.best, second.best_step, second.best_score) == (
        straight.best,
        straight.best_step,
        straight.best_score,
    )


def test_bad_numbers_and_damaged_records() -> None:
    for wrong in ({"allowed_short": -1}, {"allowed_short": math.nan}, {"patience": 0}, {"least": -0.1}):
        with pytest.raises(UsageError):
            Chooser(**wrong)  # type: ignore[arg-type]
    chooser = Chooser()
    chooser.add(3, result_of(0.1))
    good = chooser.document()
    for damage in (
        {},
        [],
        {**good, "scores": [[1]]},
        {**good, "patience": 0},
        {**good, "best": {}},
        {**good, "best": {**good["best"], "use": "0.1"}},
        {**good, "best": {**good["best"], "short_nll": None}},
        {**good, "best": {**good["best"], "relative_to": "nothing"}},
        {**good, "best": {**good["best"], "not_finite": ["tokens"]}},
        {**good, "best_step": None},
        {**good, "top": None},
        {**good, "best": {**good["best"], "long_windows": [[1.0]]}},
    ):
        with pytest.raises(CheckpointError):
            Chooser.from_document(damage)  # type: ignore[arg-type]
