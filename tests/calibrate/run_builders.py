"""A tiny extended Llama over bytes, data for it, and calibrations of it that take a second."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ctxforge import pipeline
from ctxforge.calibrate.recipes import CalibrationRecipe, checked
from ctxforge.calibrate.run.calibrating import calibrate
from ctxforge.calibrate.run.request import Calibrated, Request
from ctxforge.calibration import CalibrationOptions, make_request
from ctxforge.recipe import ConversionRecipe, MethodChoice, OutputOptions
from ctxforge.sources import bundled_model
from tests.calibrate.data_builders import stretches, write_jsonl

TRAINED, TARGET = 32, 64
SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": TRAINED,
    # Sharp attention: at the usual 0.02 it is nearly uniform.
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
# Two measurements, few windows, and rows of the target's length.
SHORT: dict[str, Any] = {
    "name": "short",
    "steps": 6,
    "rows": {"count": 3, "short_share": 0.34},
    "optimiser": {"warmup": 2, "learning_rate": 0.01},
    "held_out": {"windows": 2, "short_windows": 2, "every": 3, "share": 0.2, "patience": None},
}


def recipe(**changes: Any) -> CalibrationRecipe:
    """`SHORT`, with sections updated: `recipe(steps=4, optimiser={"warmup": 0})`."""
    document: dict[str, Any] = dict(SHORT)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(document.get(key), Mapping)
        document[key] = {**document[key], **value} if both else value
    return checked(document)


def save_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A random Llama over bytes, float32, with the bundled model's tokenizer."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model() / name, folder / name)
    return folder


def extend(source: Path, out: Path, *, method: str = "pi", to: str = "2x") -> Path:
    """`source` extended by ctxforge itself."""
    conversion = ConversionRecipe(source=str(source), method=MethodChoice(name=method), to=to)
    pipeline.extend(conversion, OutputOptions(out=out))
    return out


def build(root: Path, *, method: str = "pi", documents: int = 12, **changes: Any) -> Path:
    """`root`/source, extended to `root`/base, and `root`/data.jsonl; gives the base."""
    root.mkdir(parents=True, exist_ok=True)
    save_model(root / "source", **changes)
    write_jsonl(root / "data.jsonl", stretches(documents))
    return extend(root / "source", root / "base", method=method)


def options(root: Path, **changes: Any) -> CalibrationOptions:
    """The data of `build`, and a state after every second step."""
    return replace(CalibrationOptions(data=(str(root / "data.jsonl"),), save_every=2), **changes)


def request(
    root: Path,
    out: str = "out",
    asked: CalibrationRecipe | None = None,
    *,
    source: str | None = None,
    target_length: int | None = None,
    **changes: Any,
) -> Request:
    """A calibration of `root`/base, its token caches in `root`."""
    made = make_request(
        root / "base",
        root / out,
        asked or recipe(),
        options(root, **changes),
        source=source,
        target_length=target_length,
    )
    return replace(made, token_root=root / "tokens")


def run(root: Path, out: str = "out", asked: CalibrationRecipe | None = None, **changes: Any) -> Calibrated:
    """Run it."""
    found = calibrate(request(root, out, asked, **changes), lambda _words, _done, _total: None)
    assert found is not None
    return found


class StoppedError(Exception):
    """What `stopped` ends a run with."""


def stopped(made: Request, when: Callable[[str, int], bool]) -> None:
    """Run until progress tells words and a number of steps that `when` wants, and go as a crash does."""

    def progress(words: str, done: int, _total: int) -> None:
        if when(words, done):
            raise StoppedError

    try:
        calibrate(made, progress)
    except StoppedError:
        return
    raise AssertionError("the run ended")


def after_step(step: int) -> Callable[[str, int], bool]:
    """When a step is done, but nothing of it saved."""
    return lambda words, done: words.startswith("loss") and done == step


def before_merge(words: str, _done: int) -> bool:
    """When the training has ended."""
    return words == "merging"


def events(log: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind."""
    every = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [one for one in every if one["event"] == kind]


def losses(log: Path) -> list[tuple[int, float]]:
    """Steps and losses of a log."""
    return [(one["step"], one["loss"]) for one in events(log, "step")]


def weights(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights file."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left(root: Path) -> list[str]:
    """Hidden names that a run left below a folder."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(".*") if root / "tokens" not in path.parents)


def assert_same_state(one: Path, other: Path) -> None:
    """Two states hold the same: adapter and record byte for byte, the optimiser number for number."""
    first, second = (torch.load(state / "optimiser.pt", weights_only=True) for state in (one, other))
    assert first
    assert first.keys() == second.keys()
    for name, kept in first.items():
        assert kept.keys() == second[name].keys()
        for key, value in kept.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[name][key])), (name, key)
    files, others = tree(one), tree(other)
    assert files.keys() == others.keys()
    for name in files.keys() - {"optimiser.pt"}:
        assert files[name] == others[name], name
