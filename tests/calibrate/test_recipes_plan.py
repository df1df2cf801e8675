"""The numbers of the plan that follows from a recipe and a model's lengths, and the digest that a run is known by."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.recipes import RECIPES, CalibrationPlan, MemoryRecipe, checked, make_plan, read_recipe
from ctxforge.errors import UsageError

NAMES = tuple(RECIPES)


def plan_of(recipe: str = "quick", *changes: str, **lengths: int) -> CalibrationPlan:
    given = {"trained_length": 2048, "target_length": 8192, "width": 4096, **lengths}
    return make_plan(read_recipe(recipe, changes), **given)


def stages(plan: CalibrationPlan) -> list[tuple[int, int, int]]:
    return [(stage.steps, stage.length, stage.rows) for stage in plan.stages]


@pytest.mark.parametrize(
    ("recipe", "lengths", "wanted"),
    [
        ("quick", {}, [(240, 2048, 8)]),
        ("quick", {"trained_length": 8192, "target_length": 32768}, [(240, 4096, 8)]),
        ("full", {}, [(400, 8192, 4)]),
        ("full", {"target_length": 131072}, [(400, 131072, 1)]),
        ("longlora", {}, [(1000, 8192, 4)]),
        ("pose", {}, [(1000, 2048, 8)]),
        ("abf", {}, [(400, 2048, 16), (600, 8192, 4)]),
        ("abf", {"target_length": 2048}, [(1000, 2048, 8)]),
        ("mixed", {}, [(1000, 8192, 4)]),
        ("drope", {}, [(2000, 2048, 8)]),
        ("xpos", {}, [(1000, 8192, 4)]),
        ("giraffe", {}, [(1000, 8192, 4)]),
    ],
)
def test_stages(recipe: str, lengths: dict[str, int], wanted: list[tuple[int, int, int]]) -> None:
    plan = plan_of(recipe, **lengths)
    assert stages(plan) == wanted
    assert plan.longest == wanted[-1][1]
    assert plan.tokens == sum(steps * length * rows for steps, length, rows in wanted)
    assert sum(stage.steps for stage in plan.stages) == plan.recipe.steps


@pytest.mark.parametrize(
    ("recipe", "changes", "width", "rates"),
    [
        ("quick", (), 4096, (3e-4, 3e-5)),
        ("quick", (), 576, (3e-4 * 4096 / 576, 3e-5 * 4096 / 576)),
        ("quick", (), 8192, (1.5e-4, 1.5e-5)),
        ("pose", (), 4096, (2e-5, 2e-5)),
        ("pose", (), 1024, (8e-5, 8e-5)),
        ("longlora", ("optimiser.learning_rate=1e-3",), 1024, (1e-3, 1e-4)),
        ("longlora", ("optimiser.whole_learning_rate=0",), 4096, (3e-4, 0)),
        ("quick", ("optimiser.whole_learning_rate=0.01",), 4096, (3e-4, 0.01)),
    ],
)
def test_rates_follow_the_width(recipe: str, changes: tuple[str, ...], width: int, rates: tuple[float, float]) -> None:
    plan = plan_of(recipe, *changes, width=width)
    assert (plan.low_rank_rate, plan.whole_rate) == pytest.approx(rates)


def test_the_other_numbers() -> None:
    quick = plan_of()
    assert (quick.short_length, quick.group, quick.every) == (2048, None, 30)
    assert (quick.context, quick.refresh) == (1024, 256)
    # One text without gaps needs no more of it than the row; chunks from anywhere do.
    assert quick.stages[0].text_length == 2048
    assert plan_of("quick", "rows.content=sampled").stages[0].text_length == 5 * 2048
    assert plan_of("pose").stages[0].text_length == 5 * 2048
    assert plan_of("full").stages[0].text_length == 8192
    assert plan_of("longlora").group == 2048
    assert plan_of("longlora", "rows.group=64").group == 64
    assert plan_of("quick", "rows.group=64").group is None
    assert plan_of("quick", "rows.length=1k").short_length == 1024
    assert plan_of("full", "rows.short_length=0.5x").short_length == 4096
    assert plan_of("full", "rows.length=trained").longest == 2048
    assert plan_of("full", "rows.length=target").longest == 8192
    assert plan_of("quick", "rows.count=3").stages[0].rows == 3
    assert plan_of("abf", "rows.count=1").stages[0].rows == 4
    assert plan_of("quick", "steps=3").every == 1
    assert plan_of("quick", "held_out.every=7").every == 7
    assert plan_of("quick", trained_length=32768, target_length=65536).context == 4096
    longce = plan_of("full", "objective.context=100", "objective.refresh=7")
    assert (longce.context, longce.refresh) == (100, 7)


@pytest.mark.parametrize(
    ("changes", "lengths", "says"),
    [
        (("rows.length=16k",), {}, "longer than the target of 8192"),
        (("rows.length=3",), {}, "hold no 2 chunks"),
        (("rows.length=0",), {}, "not positive"),
        (("rows.length=lots",), {}, "not a length"),
        ((), {"seed": -1}, "seed of -1"),
    ],
)
def test_plans_that_cannot_be(changes: tuple[str, ...], lengths: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError) as error:
        plan_of("quick", *changes, **lengths)
    assert says in str(error.value)


SAME = ("about=other words", "memory.checkpointing=on", "memory.tiled_mlp=off", "memory.offload=on")
OTHER = (
    "steps=201",
    "rows.placement=cream",
    "rows.count=3",
    "rows.chunks=3",
    "rows.short_share=0.5",
    "optimiser.learning_rate=0.001",
    "optimiser.warmup=3",
    "optimiser.betas=0.9,0.99",
    "objective.restoration=3",
    "rows.content=sampled",
    "held_out.allowed_short=0.5",
    "held_out.every=3",
    "adapter.rank=5",
    "memory.tokens_at_once=512",
    "scale_base=giraffe",
)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(SAME)), st.sets(st.sampled_from(OTHER)), st.sets(st.sampled_from(OTHER)))
def test_the_digest_is_of_what_decides_about_numbers(same: set[str], one: set[str], other: set[str]) -> None:
    first, second = plan_of("quick", *sorted(one)), plan_of("quick", *sorted(other), *sorted(same))
    assert (first.digest == second.digest) == (one == other)
    again = make_plan(checked(first.document()["recipe"]), trained_length=2048, target_length=8192, width=4096)
    assert again.digest == first.digest
    assert again == first


@pytest.mark.parametrize("recipe", ["quick", "pose", "longlora"])
def test_longce_is_refused_on_rows_without_a_whole_context(recipe: str) -> None:
    with pytest.raises(UsageError, match="a short context with the whole one"):
        plan_of(recipe, "objective.kind=longce")


def test_the_digest_is_of_seed_lengths_and_width() -> None:
    digests = {
        plan_of(**changed).digest
        for changed in ({}, {"seed": 1}, {"width": 2048}, {"trained_length": 1024}, {"target_length": 4096})
    }
    assert len(digests) == 5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(64, 1 << 17),
    st.integers(1, 64),
    st.integers(1, 5000),
    st.integers(16, 16384),
)
def test_any_plan_holds_together(recipe: str, trained: int, factor: int, steps: int, width: int) -> None:
    plan = plan_of(recipe, f"steps={steps}", trained_length=trained, target_length=trained * factor, width=width)
    assert sum(stage.steps for stage in plan.stages) == steps
    assert all(stage.steps > 0 and stage.rows > 0 for stage in plan.stages)
    assert all(stage.length <= stage.text_length for stage in plan.stages)
    assert plan.longest <= trained * factor
    assert plan.short_length <= min(trained, plan.longest)
    assert 1 <= plan.every <= steps
    # Every step has about as many tokens as any other, however long its rows.
    tokens = [stage.rows * stage.length for stage in plan.stages]
    assert max(tokens) < min(tokens) + max(stage.length for stage in plan.stages)
    assert json.loads(json.dumps(plan.document(), allow_nan=False)) == plan.document()


def test_memory_is_no_part_of_the_numbers_but_tokens_at_once_is() -> None:
    # All switches are named above; a new one must be thought about.
    assert [field.name for field in dataclasses.fields(MemoryRecipe)] == [
        "checkpointing",
        "tiled_mlp",
        "offload",
        "tokens_at_once",
    ]
