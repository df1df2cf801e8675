"""What a calibration leaves: a finished checkpoint with provenance, which can be calibrated and verified again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from ctxforge import pipeline
from ctxforge.calibrate.run.calibrating import calibrate
from ctxforge.calibration import make_request
from ctxforge.checkpoint import read_checkpoint
from ctxforge.errors import CtxforgeError
from ctxforge.sources import bundled_text
from tests.calibrate.run_builders import (
    TARGET,
    TRAINED,
    build,
    losses,
    options,
    recipe,
    run,
    save_model,
    tree,
    weights,
)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ctxforge.json").read_text(encoding="utf-8"))
    return found


def strings(found: Any) -> list[str]:
    """Every string in JSON data."""
    if isinstance(found, dict):
        return [text for value in found.values() for text in strings(value)]
    if isinstance(found, list):
        return [text for value in found for text in strings(value)]
    return [found] if isinstance(found, str) else []


def test_provenance(cli: Callable[..., Any], tmp_path: Path) -> None:
    base = build(tmp_path)
    before = tree(base)
    found = run(tmp_path, seed=3)
    assert tree(base) == before
    assert cli("check", found.out).code == 0
    made, extended = record(found.out), record(base)
    (entry,) = made["calibrations"]
    assert (entry["recipe"], entry["seed"], entry["steps"]) == ("short", 3, 6)
    assert entry["best_step"] == found.best_step
    assert entry["plan"] == found.plan.document()
    assert entry["tokens"] == found.trained.trainings.tokens
    assert entry["held_out"]["best"] == found.best.document()
    assert [step for step, _ in entry["held_out"]["scores"]] == [0, 3, 6]
    (data,) = entry["data"]
    assert data["source"]["location"] == "data.jsonl"
    assert (data["documents"], data["sha256"]) == (12, found.trained.data.caches[0].header.content)
    assert entry["merge"]["tensors"] == 8
    # No folder of this machine in what the run adds.
    assert not [text for text in strings(entry) if text.startswith("/")]
    # What the conversion said stays, and files and tensors have the digests of what is there.
    for key in ("source", "plan", "schema_version"):
        assert made[key] == extended[key]
    assert set(extended["edited_tensors"]) <= set(made["edited_tensors"])
    assert len(made["edited_tensors"]) == 8
    # The config is the extended one's: nothing of the rotation is lost in the merge.
    assert (found.out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(found.out).config.max_position_embeddings == TARGET


def test_the_weights_file_is_what_the_digests_say(cli: Callable[..., Any], tmp_path: Path) -> None:
    build(tmp_path)
    found = run(tmp_path)
    path = found.out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[read_checkpoint(found.out).tensors["model.layers.0.self_attn.k_proj.weight"].start] ^= 1
    path.write_bytes(bytes(data))
    assert cli("check", found.out).code == 1


def test_a_calibrated_checkpoint_is_calibrated_again(tmp_path: Path) -> None:
    build(tmp_path)
    first = run(tmp_path, "first")
    (tmp_path / "base").rename(tmp_path / "before")
    shutil.copytree(first.out, tmp_path / "base")
    second = run(tmp_path, "second", recipe(steps=3), seed=1)
    entries = record(second.out)["calibrations"]
    assert [(entry["steps"], entry["seed"]) for entry in entries] == [(6, 0), (3, 1)]
    assert entries[0] == record(first.out)["calibrations"][0]
    # It begins where the first ended, against the same source and at the same lengths.
    scores = dict(entries[1]["held_out"]["scores"])
    assert scores[0] == pytest.approx(dict(entries[0]["held_out"]["scores"])[first.best_step], abs=1e-5)
    assert (second.plan.trained_length, second.plan.target_length) == (TRAINED, TARGET)
    assert second.trained.reference == first.trained.reference


def test_verification_judges_it_by_stricter_gates(tmp_path: Path) -> None:
    build(tmp_path)
    found = run(tmp_path)
    thresholds = []
    for folder in (tmp_path / "base", found.out):
        report = pipeline.verify(
            folder, text=bundled_text()[:12000], source=str(tmp_path / "source"), choices={"retrieval": False}
        )
        assert report.judgement is not None
        gates = {one.gate.name: one.gate.threshold for one in report.judgement.results}
        thresholds.append((gates["short_nll"], gates["use"]))
    assert thresholds == [(0.05, -0.05), (0.02, -0.01)]


def plain(root: Path) -> Path:
    """A model that ctxforge has not seen, at `root`/base, with the data of `build`."""
    build(root)
    shutil.rmtree(root / "base")
    save_model(root / "base")
    return root / "base"


def test_a_base_without_provenance(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Its lengths are given, and its own first state is what it is held against."""
    base = plain(tmp_path)
    made = make_request(
        base, tmp_path / "out", recipe(), options(tmp_path), trained_length=TRAINED // 2, target_length=TRAINED
    )
    made = replace(made, token_root=tmp_path / "tokens")
    found = calibrate(made, lambda _words, _done, _total: None)
    assert found is not None
    assert (found.plan.trained_length, found.plan.target_length) == (16, 32)
    assert found.best.relative_to == "start"
    assert found.trained.reference.source == "the checkpoint before the first step"
    (entry,) = record(found.out)["calibrations"]
    assert entry["held_out"]["best"]["relative_to"] == "start"
    assert cli("check", found.out).code == 0
    assert weights(found.out) != weights(base)
    again = replace(made, out=tmp_path / "again", work=tmp_path / "again.calibration")
    second = calibrate(again, lambda _words, _done, _total: None)
    assert second is not None
    assert losses(second.log) == losses(found.log)


def test_a_source_that_is_gone(tmp_path: Path) -> None:
    """The recorded source may have been moved: the run goes on against its own first state."""
    build(tmp_path)
    shutil.rmtree(tmp_path / "source")
    found = run(tmp_path)
    assert found.best.relative_to == "start"
    with pytest.raises(CtxforgeError):
        run(tmp_path, "other", source=str(tmp_path / "source"))
    assert not (tmp_path / "other").exists()
