"""A run that was interrupted ends as one that was not, bit for bit; one that was another is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctxforge.calibrate.recipes import CalibrationRecipe
from ctxforge.calibrate.run.calibrating import calibrate
from ctxforge.calibrate.run.log import RunLog
from ctxforge.calibrate.run.state import read_state
from ctxforge.errors import CheckpointError, InterruptedRunError, UsageError
from tests.calibrate.data_builders import stretches, write_jsonl
from tests.calibrate.run_builders import (
    after_step,
    assert_same_state,
    before_merge,
    build,
    events,
    extend,
    left,
    losses,
    recipe,
    request,
    run,
    save_model,
    stopped,
    weights,
)

LOW_RANK: dict[str, Any] = {"kind": "lora", "rank": 4, "alpha": 8.0, "whole": ["norm"], "dropout": 0.3}
WAYS: dict[str, tuple[CalibrationRecipe, dict[str, Any]]] = {
    # Dropout in the adapter, and in attention where everything is trained: each step seeds its own.
    "lora": (recipe(steps=10, adapter=LOW_RANK, held_out={"every": 4}), {}),
    "full": (
        recipe(steps=10, adapter="full", rows={"placement": "pose", "length": "trained"}, held_out={"every": 4}),
        {"attention_dropout": 0.3},
    ),
    "restoration": (
        recipe(
            steps=10,
            adapter=LOW_RANK,
            rows={"placement": "pose", "content": "contiguous", "length": "trained"},
            objective={"restoration": 10.0},
            held_out={"every": 4},
        ),
        {"attention_dropout": 0.3},
    ),
    "longce": (
        recipe(
            steps=10,
            adapter={**LOW_RANK, "dropout": 0.0},
            rows={"placement": "mixed-windows", "first_share": 0.3},
            objective={"kind": "longce"},
            memory={"checkpointing": "on", "tokens_at_once": 70},
            held_out={"every": 4},
        ),
        {},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_ten_steps_are_five_and_five(way: str, tmp_path: Path) -> None:
    asked, model = WAYS[way]
    build(tmp_path, **model)
    stopped(request(tmp_path, "straight", asked), before_merge)
    state = tmp_path / "straight.calibration" / "state"
    whole = shutil.copytree(state, tmp_path / "whole")
    straight = run(tmp_path, "straight", asked)

    # A polite stop after step 5, and a crash in step 8 whose last state is of step 7.
    def ask(words: str, done: int, _total: int) -> None:
        if words.startswith("loss") and done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="after step 5 of 10"):
        calibrate(request(tmp_path, "again", asked), ask)
    assert signal.getsignal(signal.SIGTERM) is not None
    work = tmp_path / "again.calibration"
    found = read_state(work)
    assert found is not None
    assert found.step == 5
    stopped(request(tmp_path, "again", asked), after_step(8))
    found = read_state(work)
    assert found is not None
    assert found.step == 7
    stopped(request(tmp_path, "again", asked), before_merge)
    assert_same_state(work / "state", whole)
    again = run(tmp_path, "again", asked)

    assert weights(again.out) == weights(straight.out) != weights(tmp_path / "base")
    assert losses(again.log) == losses(straight.log)
    assert [step for step, _ in losses(again.log)] == list(range(1, 11))
    names = ("step", "use", "short_nll", "score", "best")
    first, second = (
        [[one[name] for name in names] for one in events(log, "held_out")] for log in (again.log, straight.log)
    )
    assert first == second
    assert [row[0] for row in first] == [0, 4, 8, 10]
    assert again.written == straight.written
    assert left(tmp_path) == []

    other = run(tmp_path, "other", asked, seed=1)
    assert losses(other.log) != losses(straight.log)
    assert weights(other.out) != weights(straight.out)


def test_dropout_is_drawn_anew_in_each_step(tmp_path: Path) -> None:
    """The control of the test above: dropout changes the losses, so that it matters which numbers are drawn."""
    build(tmp_path)
    with_it = run(tmp_path, "with", recipe(adapter=LOW_RANK))
    without = run(tmp_path, "without", recipe(adapter={**LOW_RANK, "dropout": 0.0}))
    assert losses(with_it.log)[0] == losses(without.log)[0]  # B is 0 before the first step
    assert losses(with_it.log)[2:] != losses(without.log)[2:]


def other_data(root: Path) -> dict[str, Any]:
    write_jsonl(root / "data.jsonl", stretches(13))
    return {}


def other_base(root: Path) -> dict[str, Any]:
    shutil.rmtree(root / "base")
    shutil.rmtree(root / "source")
    save_model(root / "source", seed=3)
    extend(root / "source", root / "base")
    return {}


def other_factor(root: Path) -> dict[str, Any]:
    shutil.rmtree(root / "base")
    extend(root / "source", root / "base", method="ntk")
    return {}


def other_source(root: Path) -> dict[str, Any]:
    save_model(root / "other", seed=5)
    return {"source": str(root / "other")}


Change = Callable[[Path], dict[str, Any]]
OTHERS: list[tuple[str, Change]] = [
    ("recipe", lambda _root: {"asked": recipe(steps=7)}),
    ("recipe", lambda _root: {"asked": recipe(optimiser={"learning_rate": 0.02})}),
    ("recipe", lambda _root: {"target_length": 96}),
    ("seed", lambda _root: {"seed": 1}),
    ("data", other_data),
    ("base checkpoint and source", other_base),
    ("base checkpoint", other_factor),
    ("source", other_source),
]


@pytest.mark.parametrize(("name", "change"), OTHERS)
def test_a_run_that_was_another_is_refused(name: str, change: Change, tmp_path: Path) -> None:
    build(tmp_path)
    stopped(request(tmp_path), after_step(3))
    changes = change(tmp_path)
    work = tmp_path / "out.calibration"
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as refused:
        run(tmp_path, **changes)
    assert refused.value.cause.endswith(f"stopped at step 2 with another {name}")
    assert "--fresh" in refused.value.remedy
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()

    found = run(tmp_path, **changes, fresh=True)
    clean = run(tmp_path, "clean", **changes)
    assert weights(found.out) == weights(clean.out)
    assert losses(found.log) == losses(clean.log)
    assert found.trained.reference == clean.trained.reference


def test_memory_and_words_may_differ(tmp_path: Path) -> None:
    build(tmp_path)
    straight = run(tmp_path, "straight")
    stopped(request(tmp_path), after_step(3))
    changed = recipe(about="the same, told otherwise", memory={"checkpointing": "on", "tiled_mlp": "on"})
    found = run(tmp_path, "out", changed)
    assert found.trained.options.checkpoint
    assert [step for step, _ in losses(found.log)] == [1, 2, 3, 4, 5, 6]
    for (_, one), (_, other) in zip(losses(found.log), losses(straight.log), strict=True):
        assert abs(one - other) < 1e-5


def test_another_base_in_the_same_work_folder_is_measured_anew(tmp_path: Path) -> None:
    """The source's losses are kept in the run's folder: they are of that source only."""
    build(tmp_path)
    work = tmp_path / "work"
    first = run(tmp_path, "first", work=work)
    other_base(tmp_path)
    second = run(tmp_path, "second", work=work)
    clean = run(tmp_path, "clean")
    assert second.trained.reference == clean.trained.reference
    assert second.trained.reference.short != first.trained.reference.short


@pytest.mark.parametrize("damage", ["", "{", '{"step": 3}', "[]"])
def test_a_damaged_state(damage: str, tmp_path: Path) -> None:
    build(tmp_path)
    stopped(request(tmp_path), after_step(3))
    (tmp_path / "out.calibration" / "state" / "run.json").write_text(damage)
    with pytest.raises(CheckpointError, match="damaged") as refused:
        run(tmp_path)
    assert "--fresh" in refused.value.remedy


@pytest.mark.parametrize("name", ["optimiser.pt", "adapter/adapter.json", "adapter/adapter.safetensors"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_state_with_a_damaged_file(name: str, how: str, tmp_path: Path) -> None:
    build(tmp_path)
    stopped(request(tmp_path), after_step(3))
    path = tmp_path / "out.calibration" / "state" / name
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises((CheckpointError, UsageError)):
        run(tmp_path)
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, fresh=True).best_step == 6


def test_the_log_is_rewound(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"event": "start", "step": 0}, *({"event": "step", "step": n, "loss": 0.5 * n} for n in (1, 2, 3))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "step", "st')
    log = RunLog(path)
    log.rewind(2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    log.write("step", 3, {"loss": float("nan"), "inner": {"norm": float("inf"), "list": [1.0, float("nan")]}})
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {"event": "step", "step": 3, "loss": None, "inner": {"norm": None, "list": [1.0, None]}}
    log.rewind(-1)
    assert path.read_text() == ""
    RunLog(None).write("step", 1, {})
    RunLog(tmp_path / "none").rewind(3)
    assert [one.name for one in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_resumed_log_says_each_thing_once(tmp_path: Path) -> None:
    build(tmp_path)
    made = replace(request(tmp_path), save_every=1)
    stopped(made, after_step(4))
    log = made.work / "log.jsonl"
    with log.open("a") as file:
        file.write('{"event": "step", "step": 5, "lo')
    stopped(made, before_merge)
    found = calibrate(made, lambda _words, _done, _total: None)
    assert found is not None
    every = [json.loads(line) for line in log.read_text().splitlines()]
    told = [(one["event"], one["step"]) for one in every]
    assert len(told) == len(set(told))
    assert [step for event, step in told if event == "step"] == [1, 2, 3, 4, 5, 6]
    assert told[0] == ("start", 0)
    assert told[-1] == ("end", 6)
    keys = {"loss", "tokens", "counted", "gradient_norm", "rate", "seconds", "tokens_per_second", "memory_bytes"}
    assert all(keys <= one.keys() for one in every if one["event"] == "step")
