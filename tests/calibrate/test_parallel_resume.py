"""A run that goes on from its adapter and its optimiser's state, on as many processes or on others (gloo, float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.calibrate.parallel_child import Job
from tests.calibrate.parallel_runs import Found, difference, found_in, made_once, train
from tests.tiny_models import save_tiny

RECIPES = ("lora", "full")
SHARD = {"shard": True}


def run_all(folder: Path) -> None:
    """Four steps in a row on one process; two and two on one, two and shards, in every order."""
    base = str(save_tiny("qwen2", folder / "base"))
    (folder / "saved").mkdir()

    def begin(name: str, **changes: Any) -> list[Job]:
        return [
            Job(f"{one} {name}", base, one, save=str(folder / "saved" / f"{one}.{name}"), **changes) for one in RECIPES
        ]

    def resume(name: str, saved: str, **changes: Any) -> list[Job]:
        return [
            Job(f"{one} {name}", base, one, first=2, resume=str(folder / "saved" / f"{one}.{saved}"), **changes)
            for one in RECIPES
        ]

    alone = [*begin("straight", steps=4), *begin("one"), *resume("one to one", "one")]
    two = [
        *begin("two"),
        *begin("shard", options=SHARD),
        *resume("one to two", "one"),
        *resume("one to shard", "one", options=SHARD),
        *resume("shard to shard", "shard", options=SHARD),
    ]
    train([*alone, *resume("forgotten", "one", forget=True)], folder / "run1", 1)
    train(two, folder / "run2", 2)
    train([*resume("two to one", "two"), *resume("shard to one", "shard")], folder / "run3", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "parallel-resume", run_all)


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return {name: runs for part in ("run1", "run2", "run3") for name, runs in found_in(folder / part).items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_process_goes_on_bit_for_bit(recipe: str, found: Found) -> None:
    (straight,), (resumed,) = found[f"{recipe} straight"], found[f"{recipe} one to one"]
    assert resumed["notes"] == {"steps": 2}
    assert resumed["losses"] == straight["losses"][2:]
    assert resumed["after"] == straight["after"]
    assert difference(straight["weights"], resumed["weights"]) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_the_optimisers_state_it_is_another_run(recipe: str, found: Found) -> None:
    (straight,), (forgotten,) = found[f"{recipe} straight"], found[f"{recipe} forgotten"]
    assert forgotten["losses"][0] == straight["losses"][2]
    assert difference(straight["weights"], forgotten["weights"]) > 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", ["two to one", "shard to one", "one to two", "one to shard", "shard to shard"])
def test_a_run_goes_on_with_other_processes(recipe: str, how: str, found: Found) -> None:
    (straight,) = found[f"{recipe} straight"]
    for resumed in found[f"{recipe} {how}"]:
        assert resumed["notes"] == {"steps": 2}
        assert resumed["losses"] == pytest.approx(straight["losses"][2:], rel=1e-6)
        assert difference(straight["weights"], resumed["weights"]) < 5e-6


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", ["one", "two", "shard"])
def test_a_state_is_of_named_tensors_and_the_main_processs(recipe: str, how: str, folder: Path, found: Found) -> None:
    first, *others = found[f"{recipe} {how}"]
    assert all(other["state"] == {} for other in others)
    assert first["state"].keys() == first["weights"].keys()
    for name, kept in first["state"].items():
        assert kept.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert float(kept["step"]) == 2
        assert kept["exp_avg"].shape == first["weights"][name].shape
        assert type(kept["exp_avg"]) is torch.Tensor
    record = folder / "saved" / f"{recipe}.{how}" / "adapter.json"
    assert json.loads(record.read_text())["notes"] == {"steps": 2}
