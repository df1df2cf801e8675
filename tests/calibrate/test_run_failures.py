"""A loss that is no number stops a run, with its step and documents named; worse steps are not what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxforge.calibrate.run.state import read_state
from ctxforge.calibrate.run.step import NotFiniteError
from ctxforge.checkpoint.staging import locked
from ctxforge.errors import CtxforgeError, ExitCode, ResourceError, UnsupportedError
from tests.calibrate.data_builders import stretches, write_jsonl
from tests.calibrate.run_builders import (
    after_step,
    build,
    events,
    left,
    losses,
    recipe,
    request,
    run,
    stopped,
    tree,
    weights,
)

MARK = "~"
POISONED = 8


def poison(root: Path, name: str, row: int | None = None) -> None:
    """A weight of the base, or a row of it, that is no number."""
    path = root / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors[name][slice(None) if row is None else row] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """One letter's embedding is broken, and a passage has it: the run stops where that passage is drawn."""
    build(tmp_path)
    texts = stretches(12)
    texts[POISONED] = texts[POISONED][:-60] + 6 * f"a passage{MARK}"
    write_jsonl(tmp_path / "data.jsonl", texts)
    poison(tmp_path, "model.embed_tokens.weight", ord(MARK))
    asked = recipe(steps=40, held_out={"every": 40})
    with pytest.raises(NotFiniteError) as told:
        run(tmp_path, asked=asked, save_every=1000)
    work = tmp_path / "out.calibration"
    done = losses(work / "log.jsonl")[-1][0]
    assert 1 <= done < 40
    assert told.value.exit_code == ExitCode.USAGE
    assert told.value.cause.startswith(f"step {done + 1}: the loss of forward pass 1 is not a number; ")
    named = told.value.cause.split("its rows hold documents ")[1]
    assert POISONED in [int(part.split(" of source ")[0]) for part in named.split(", ")]
    assert "optimiser.learning_rate" in told.value.remedy
    assert "--fresh" in told.value.remedy
    state = read_state(work)
    assert state is not None
    assert state.step == done
    kept = tree(work / "state")
    assert not (tmp_path / "out").exists()
    assert left(tmp_path) == []

    # The same command meets the same step; the state stays.
    with pytest.raises(NotFiniteError) as again:
        run(tmp_path, asked=asked, save_every=1000)
    assert again.value.cause == told.value.cause
    assert tree(work / "state") == kept

    # Without the document it is all right: the control.
    write_jsonl(tmp_path / "data.jsonl", texts[:POISONED] + texts[POISONED + 1 :])
    assert run(tmp_path, asked=recipe(), fresh=True).best_step == 6


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_base_that_is_broken_throughout(name: str, tmp_path: Path) -> None:
    build(tmp_path)
    poison(tmp_path, name)
    with pytest.raises(CtxforgeError) as told:
        run(tmp_path)
    assert not isinstance(told.value, UnsupportedError), told.value
    assert "finite" in told.value.cause
    assert not (tmp_path / "out").exists()


def test_an_absurd_learning_rate_keeps_the_model_as_it_was(tmp_path: Path) -> None:
    """Nothing gets better: the step that is kept is the one before the first, and training stops by patience."""
    build(tmp_path)
    absurd = recipe(
        steps=40,
        adapter="full",
        optimiser={"learning_rate": 0.9, "warmup": 0, "clip": None},
        held_out={"every": 2, "patience": 2},
    )
    found = run(tmp_path, asked=absurd)
    assert found.best_step == 0
    assert found.trained.trainings.step == 4
    assert found.trained.trainings.ended == "no better held-out score in 2 measurements since step 0"
    scores = dict(found.trained.trainings.chooser.document()["scores"])
    assert set(scores) == {0, 2, 4}
    assert scores[0] > max(scores[2], scores[4])
    # Byte for byte: what was merged changes nothing.
    assert weights(found.out) == weights(tmp_path / "base")
    assert found.written.short_nll == found.best.short_nll
    entry = json.loads((found.out / "ctxforge.json").read_text())["calibrations"][0]
    assert (entry["best_step"], entry["steps"]) == (0, 4)


def test_the_best_step_is_what_is_merged(tmp_path: Path) -> None:
    """A rate that helps at first and then hurts: the output is what a run of so many steps would have measured."""
    build(tmp_path)
    asked = recipe(
        steps=24,
        optimiser={"learning_rate": 0.2, "warmup": 12, "clip": None},
        held_out={"every": 1, "patience": None},
    )
    found = run(tmp_path, asked=asked)
    scores = dict(found.trained.trainings.chooser.document()["scores"])
    best = max(scores, key=lambda step: (scores[step], -step))
    assert 0 < best < 24, scores
    assert found.best_step == best
    told = {one["step"]: one for one in events(found.log, "held_out")}
    assert [step for step, one in told.items() if one["best"]][-1] == best
    # Merged weights give the losses of that step, and not of the last.
    assert found.written.short_nll == pytest.approx(told[best]["short_nll"], abs=1e-5)
    assert found.written.use == pytest.approx(told[best]["use"], abs=1e-5)
    assert abs(found.written.short_nll - told[24]["short_nll"]) > 1e-3


def test_a_best_step_that_is_gone(tmp_path: Path) -> None:
    """The state says which step was the best: another one in its place is not merged."""
    build(tmp_path)
    stopped(request(tmp_path), after_step(5))
    path = tmp_path / "out.calibration" / "state" / "run.json"
    state = json.loads(path.read_text())
    state["step"], state["chooser"]["best_step"] = 6, 4
    path.write_text(json.dumps(state))
    with pytest.raises(CtxforgeError, match="holds step 3, and step 4 was the best") as told:
        run(tmp_path)
    assert "--fresh" in told.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_work_folder_in_use(tmp_path: Path) -> None:
    build(tmp_path)
    made = request(tmp_path)
    made.work.mkdir()
    with locked(made.work), pytest.raises(ResourceError, match="Another run"):
        run(tmp_path)
    assert run(tmp_path).out.is_dir()
