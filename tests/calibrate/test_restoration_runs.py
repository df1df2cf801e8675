"""Whole calibrations with restoration: with the source, without it, in other dtypes, architectures and code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctxforge.calibrate.objectives.restoration import Teacher
from ctxforge.calibrate.parallel import ParallelOptions
from ctxforge.calibrate.recipes import CalibrationRecipe
from ctxforge.calibrate.run import calibrating, foreseen
from ctxforge.calibrate.run.calibrating import calibrate
from ctxforge.calibrate.run.restoring import notes_of, restores
from ctxforge.calibration import make_request
from ctxforge.cli.calibrate import report
from ctxforge.cli.output import Output
from ctxforge.errors import ResourceError, UnsupportedError
from ctxforge.provenance import FILE_NAME
from tests.calibrate.recipe_models import Bench, bench, stock
from tests.calibrate.restoration_builders import plain_distance
from tests.calibrate.run_builders import (
    TARGET,
    TRAINED,
    build,
    events,
    losses,
    options,
    recipe,
    request,
    run,
    save_model,
)

__all__ = ["bench"]


def held(weight: float = 5.0, **changes: Any) -> CalibrationRecipe:
    rows = {"placement": "pose", "content": "contiguous", "length": "trained"}
    return recipe(objective={"restoration": weight}, rows=rows, **changes)


def test_a_run_says_whether_it_restores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the source it is the run of a recipe without restoration, number for number, and says so."""
    build(tmp_path)
    with_it = run(tmp_path, "with", held())
    assert events(with_it.log, "start")[0]["restoration"] is True
    assert with_it.trained.notes == ()
    plain = run(tmp_path, "plain", held(0.0))
    assert losses(plain.log) != losses(with_it.log)
    assert plain.trained.notes == ()

    shutil.rmtree(tmp_path / "source")
    gone = run(tmp_path, "gone", held())
    start = events(gone.log, "start")[0]
    assert start["restoration"] is False
    assert start["notes"] == list(gone.trained.notes) == gone.document()["notes"]
    (recorded,) = json.loads((gone.out / FILE_NAME).read_text())["calibrations"]
    assert recorded["notes"] == start["notes"]
    assert "hidden states were not held to it" in gone.trained.notes[0]
    assert losses(gone.log) == losses(plain.log)
    capsys.readouterr()
    report(Output("calibrate", as_json=False, quiet=False), gone)
    assert gone.trained.notes[0] in " ".join(capsys.readouterr().err.split())
    report(Output("calibrate", as_json=False, quiet=False), plain)
    assert "not held to it" not in " ".join(capsys.readouterr().err.split())


def test_a_base_without_provenance(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "base" / FILE_NAME).unlink()
    lengths = {"trained_length": TRAINED, "target_length": TARGET}
    made = make_request(tmp_path / "base", tmp_path / "out", held(), options(tmp_path), **lengths)
    assert made.source is None
    assert not restores(made)
    assert len(notes_of(made)) == 1
    source = str(tmp_path / "source")
    given = make_request(tmp_path / "base", tmp_path / "out", held(), options(tmp_path), source=source, **lengths)
    assert restores(given)
    assert notes_of(given) == ()


def test_processes_that_share_a_sequence_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    parallel = ParallelOptions(context=2)
    with pytest.raises(UnsupportedError) as refused:
        restores(request(tmp_path, asked=held(), parallel=parallel))
    assert "objective.restoration=0" in refused.value.remedy
    assert "--context" in refused.value.remedy
    assert not restores(request(tmp_path, asked=held(0.0), parallel=parallel))
    shutil.rmtree(tmp_path / "source")
    assert not restores(request(tmp_path, asked=held(), parallel=parallel))


def test_a_source_of_other_layers_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    save_model(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UnsupportedError, match="3 layers of width 32 and the model 2 layers"):
        run(tmp_path, "out", held(), source=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()
    found = run(tmp_path, "out", held(0.0), source=str(tmp_path / "other"))
    assert found.trained.trainings.step == 6


def test_the_source_takes_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left for a step is less by the source's weights and states, and the way out is named."""
    build(tmp_path)
    given: list[int] = []
    real = foreseen.fit

    def watch(*args: Any, memory: int, **more: Any) -> Any:
        given.append(memory)
        return real(*args, memory=memory, **more)

    monkeypatch.setattr(foreseen, "fit", watch)
    room = 1 << 40
    monkeypatch.setattr(calibrating, "least_memory", lambda _processes: room)
    tight = {"tokens_at_once": 100, "checkpointing": "off", "tiled_mlp": "off"}
    found = run(tmp_path, "plain", held(0.0, memory=tight))
    # Enough for the step, and not for the source beside it.
    room = int(found.trained.estimate.total / 0.9) + 10
    with pytest.raises(ResourceError, match="beside the source's") as refused:
        run(tmp_path, "out", held(memory=tight))
    assert "objective.restoration=0" in refused.value.remedy
    teacher = Teacher(stock(tmp_path / "source"))
    assert given == [1 << 40, room - teacher.bytes - teacher.state_bytes(100)]


@pytest.mark.parametrize(
    ("kind", "method", "dtype"),
    [("gemma2", "pi", "float32"), ("llama", "xpos-abf", "float32"), ("qwen3", "pi", "bfloat16")],
)
def test_other_architectures_code_and_dtypes_come_back_to_their_source(
    kind: str, method: str, dtype: str, bench: Bench
) -> None:
    trust = method == "xpos-abf"
    checkpoints = bench.extend(method, kind, dtype=getattr(torch, dtype))
    teachers = []
    bench.watch = lambda loop: teachers.append(loop.training.teacher)
    many = ("objective.restoration=30", "optimiser.learning_rate=0.01", "optimiser.warmup=0")
    found = bench.calibrate(checkpoints, "quick", many, steps=5, trust_remote_code=trust, dtype=dtype)
    without = ("objective.restoration=0", *many[1:])
    alone = bench.calibrate(checkpoints, "quick", without, steps=5, out="alone", trust_remote_code=trust, dtype=dtype)
    assert teachers[0] is not None
    assert teachers[1] is None
    assert teachers[0].model.dtype == getattr(torch, dtype)
    assert getattr(teachers[0].model.config, "auto_map", None) is None
    row = next(row for row in found.first_rows if not row.isolated)
    target = states(stock(found.source), row)
    before, after, other = (
        float(plain_distance(states(stock(folder, trust=trust), row), target)) / row.length
        for folder in (found.extended, found.out, alone.out)
    )
    assert found.found.best_step > 0
    assert before > 0.01
    assert after < 0.9 * before
    assert after < other


def states(model: Any, row: Any) -> list[torch.Tensor]:
    """After each layer, [T, d], of a row's tokens at their own places."""
    ids = torch.tensor(np.array(row.ids))[None]
    with torch.no_grad():
        found = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True
        ).hidden_states
    return [one[0] for one in found[1:]]


def test_nothing_is_written_where_it_is_refused(tmp_path: Path) -> None:
    """Before processes are started, by their options alone."""
    build(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    made = request(tmp_path, asked=held(), parallel=ParallelOptions(context=2))
    with pytest.raises(UnsupportedError, match="share a sequence"):
        calibrate(made, lambda _words, _done, _total: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
