"""Learning rates and scale bases by step, and which rate each kind of parameter gets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from ctxforge.calibrate.recipes import CalibrationPlan, make_plan
from ctxforge.calibrate.run.optimiser import make_optimiser, set_rate
from ctxforge.calibrate.run.schedule import rate_factor, scale_base
from tests.calibrate.run_builders import recipe


def plan(**changes: Any) -> CalibrationPlan:
    return make_plan(recipe(**changes), trained_length=32, target_length=64, width=32)


def factors(steps: int, **optimiser: Any) -> list[float]:
    made = plan(steps=steps, optimiser=optimiser)
    return [rate_factor(made, step) for step in range(steps)]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_growth_is_linear(shape: str) -> None:
    found = factors(100, schedule=shape, warmup=10, final=0.1)
    assert found[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert found[10] == 1.0
    assert max(found) == 1.0
    assert all(one >= other for one, other in itertools.pairwise(found[10:]))
    # The steps that are left go down to the last share, which the step after the last would have.
    assert 0.1 < found[-1] < 0.2


def test_constant_falls_over_the_last_tenth() -> None:
    found = factors(110, schedule="constant", warmup=10, final=0.1)
    assert found[10:101] == pytest.approx([1.0] * 91)
    assert found[101:] == pytest.approx([1 - 0.9 * step / 10 for step in range(1, 10)])


def test_linear() -> None:
    found = factors(110, schedule="linear", warmup=10, final=0.1)
    assert found[10:] == pytest.approx([1 - 0.9 * step / 100 for step in range(100)])
    assert found[60] == pytest.approx(0.55)


def test_cosine() -> None:
    found = factors(110, schedule="cosine", warmup=10, final=0.1)
    assert found[60] == pytest.approx(0.55)
    assert found[35] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert found[85] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2)


def test_a_short_run_grows_over_half_of_it_at_most() -> None:
    assert factors(4, warmup=10, schedule="linear", final=0.0) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5])
    assert factors(1, warmup=10, schedule="cosine") == [1.0]


def test_scale_bases() -> None:
    assert scale_base(plan(), 3, 512.0) is None
    made = plan(steps=100, scale_base="annealed", anneal_share=0.5)
    found = [scale_base(made, step, 512.0) for step in (0, 25, 50, 99)]
    # 1/B grows evenly from that of 64 times the base to that of the base.
    assert found == pytest.approx([64 * 512, 1 / ((1 / (64 * 512) + 1 / 512) / 2), 512.0, 512.0])
    assert scale_base(made, 0, 32.0) == 64 * 64  # the target is longer than the base
    giraffe = plan(steps=2000, scale_base="giraffe")
    assert [scale_base(giraffe, step, 128.0) for step in (0, 100, 1008, 1999)] == [8192.0, 7392.0, 128.0, 128.0]
    # It never falls below the checkpoint's own.
    assert [scale_base(giraffe, step, 512.0) for step in (959, 960, 1999)] == [520.0, 512.0, 512.0]


def test_rates_by_kind_of_parameter() -> None:
    made = plan(
        optimiser={"learning_rate": 0.02, "whole_learning_rate": 0.001, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    )
    groups = {name: [torch.nn.Parameter(torch.ones(2))] for name in ("low_rank", "norm", "embedding")}
    optimiser = make_optimiser(made, groups)
    assert [group["lr"] for group in optimiser.param_groups] == [0.02, 0.001, 0.001]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0, 0.1]
    assert [group["betas"] for group in optimiser.param_groups] == [(0.8, 0.9)] * 3
    set_rate(optimiser, 0.5)
    set_rate(optimiser, 0.25)  # of the highest, not of the one before
    assert [group["lr"] for group in optimiser.param_groups] == [0.005, 0.00025, 0.00025]
    # AdamW's first step moves by the rate, however large the gradient is; decay comes on top, but not on norms.
    for parameters in groups.values():
        parameters[0].grad = torch.tensor([3.0, -0.001])
    optimiser.step()
    moved = {name: parameters[0].detach() for name, parameters in groups.items()}
    sign = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(moved["low_rank"], 1 - 0.005 * 0.1 - 0.005 * sign, rtol=0, atol=1e-6)
    torch.testing.assert_close(moved["norm"], 1 - 0.00025 * sign, rtol=0, atol=1e-6)
    torch.testing.assert_close(moved["embedding"], 1 - 0.00025 * 0.1 - 0.00025 * sign, rtol=0, atol=1e-6)


def test_rates_that_are_left_open_follow_from_the_adapter() -> None:
    low = plan(optimiser={"learning_rate": None}, adapter={"kind": "lora", "whole": ["norm"]})
    full = plan(optimiser={"learning_rate": None}, adapter="full")
    assert low.whole_rate == pytest.approx(0.1 * low.low_rank_rate)
    assert full.whole_rate == full.low_rank_rate
    given = plan(optimiser={"learning_rate": 0.01}, adapter="full")
    assert given.whole_rate == 0.01
