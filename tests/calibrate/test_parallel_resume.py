"""A run that goes on from its adapter and its optimiser's state, on as many processes or on others (gloo, float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.calibrate.parallel_child import Job
from tests.calibrate.parallel_runs import difference, train
from tests.tiny_models import save_tiny

RECIPES = ("lora", "full")
SHARD = {"shard": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Four steps in a row on one process; two and two on one, two and shards, in every order."""
    base = str(save_tiny("qwen2", folder / "base"))

    def begin(name: str, **options: Any) -> list[Job]:
        return [Job(f"{one}-{name}", base, one, save=str(folder / f"{one}-{name}"), **options) for one in RECIPES]

    def resume(name: str, saved: str, **options: Any) -> list[Job]:
        return [
            Job(f"{one}-{name}", base, one, first=2, resume=str(folder / f"{one}-{saved}"), **options)
            for one in RECIPES
        ]

    one = [*begin("straight", steps=4), *begin("one"), *resume("one-one", "one")]
    two = [
        *begin("two"),
        *begin("shard", options=SHARD),
        *resume("one-two", "one"),
        *resume("one-shard", "one", options=SHARD),
        *resume("shard-shard", "shard", options=SHARD),
    ]
    back = [*resume("two-one", "two"), *resume("shard-one", "shard")]
    return {
        **train(one, folder / "run1", 1),
        **train(two, folder / "run2", 2),
        **train(back, folder / "run3", 1),
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_process_goes_on_bit_for_bit(recipe: str, found: dict[str, list[dict[str, Any]]]) -> None:
    (straight,), (resumed,) = found[f"{recipe}-straight"], found[f"{recipe}-one-one"]
    assert resumed["notes"] == {"steps": 2}
    assert resumed["losses"] == straight["losses"][2:]
    assert difference(straight["weights"], resumed["weights"]) == 0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", ["two-one", "shard-one", "one-two", "one-shard", "shard-shard"])
def test_a_run_goes_on_with_other_processes(recipe: str, how: str, found: dict[str, list[dict[str, Any]]]) -> None:
    (straight,) = found[f"{recipe}-straight"]
    for resumed in found[f"{recipe}-{how}"]:
        assert resumed["notes"] == {"steps": 2}
        assert resumed["losses"] == pytest.approx(straight["losses"][2:], rel=1e-6)
        assert difference(straight["weights"], resumed["weights"]) < 5e-6


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_the_optimisers_state_it_is_another_run(
    recipe: str, folder: Path, found: dict[str, list[dict[str, Any]]]
) -> None:
    bare = Job("bare", str(folder / "base"), recipe, first=2, resume=str(folder / f"{recipe}-one"), forget=True)
    (resumed,) = train([bare], folder / f"bare-{recipe}", 1)["bare"]
    assert difference(found[f"{recipe}-straight"][0]["weights"], resumed["weights"]) > 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", ["one", "two", "shard"])
def test_a_state_is_of_named_tensors_and_the_main_processs(
    recipe: str, how: str, folder: Path, found: dict[str, list[dict[str, Any]]]
) -> None:
    first, *others = found[f"{recipe}-{how}"]
    assert all(other["state"] == {} for other in others)
    assert first["state"].keys() == first["weights"].keys()
    for name, kept in first["state"].items():
        assert kept.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert float(kept["step"]) == 2
        assert kept["exp_avg"].shape == first["weights"][name].shape
        assert type(kept["exp_avg"]) is torch.Tensor
    assert json.loads((folder / f"{recipe}-{how}" / "adapter.json").read_text())["notes"] == {"steps": 2}
