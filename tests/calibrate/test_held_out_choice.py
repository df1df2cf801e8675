"""Which step is the best, when to stop, and that a record of scores goes on where it was."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge.calibrate.held_out import Chooser, HeldOutResult
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


def test_equal_scores_keep_the_earlier_step() -> None:
    chooser = Chooser()
    assert [chooser.add(step, result_of(0.1)) for step in (10, 20, 5)] == [True, False, True]
    assert chooser.best_step == 5


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

    finite = [(score(result), -step) for step, result in measured if math.isfinite(score(result))]
    for order in (measured, data.draw(st.permutations(measured))):
        chooser = Chooser(allowed, least=data.draw(st.floats(0, 2)))
        seen: list[tuple[float, int]] = []
        for step, result in order:
            rank = (score(result), -step)
            assert chooser.add(step, result) == (math.isfinite(rank[0]) and rank > max(seen, default=(-math.inf, 0)))
            seen += [rank] if math.isfinite(rank[0]) else []
        if not finite:
            assert chooser.best is chooser.best_step is None
            continue
        assert (chooser.best_score, -(chooser.best_step or 0)) == max(finite)
        assert chooser.best is not None
        assert score(chooser.best) == max(finite)[0]


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
    ):
        with pytest.raises(CheckpointError):
            Chooser.from_document(damage)  # type: ignore[arg-type]
