"""Tiny checkpoints with a learnable text, calibrated for real, and what the result is held against."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import ctxforge
from ctxforge import static_checks
from ctxforge.calibrate.adapters import attach, read_adapter, restore_adapter
from ctxforge.calibrate.data import plan_batch
from ctxforge.calibrate.placement import Layout
from ctxforge.calibrate.recipes import read_recipe
from ctxforge.calibrate.run import calibrating
from ctxforge.calibrate.run.loop import Loop
from ctxforge.calibrate.run.request import Calibrated
from ctxforge.calibrate.run.rows import lay_out
from ctxforge.calibration import CalibrationOptions, calibrate
from ctxforge.checkpoint import read_checkpoint
from ctxforge.provenance import FILE_NAME
from tests.verification.tiny import VOCAB, byte_tokenizer, tiny

TRAINED, TARGET = 64, 256
STEPS = 4
SMALL = ("rows.count=4", "held_out.share=0.25", "held_out.windows=2", "held_out.short_windows=4", "held_out.every=2")
"""Rows, windows and measurements that a test can pay for."""
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "gpt_neox": {"rotary_pct": 0.5},
    "glm": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "gemma2": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "mistral": {"sliding_window": 24},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "phi3": {"original_max_position_embeddings": TRAINED},
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_source(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A tiny sharp model of TRAINED tokens with norms away from 1, and a tokenizer of bytes."""
    model = tiny(kind, dtype=dtype, **{"max_position_embeddings": TRAINED, **CHANGES.get(kind, {}), **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_documents(path: Path, *, long: int = 20, short: int = 12) -> Path:
    """The alphabet over and over from some letter on, and each document's number: easy to learn."""
    lengths = [560] * long + [40] * short
    with path.open("w") as file:
        for number, length in enumerate(lengths):
            first = random.Random(number).randrange(26)
            text = "".join(_LETTERS[(first + at) % 26] for at in range(length)) + str(number)
            file.write(json.dumps({"text": text}) + "\n")
    return path


@dataclass(frozen=True)
class Run:
    """A finished calibration.

    Attributes:
        source, extended: the checkpoints before.
        found: what `calibrate` gave.
        loop: what it trained with.
        adapter: a copy of the best step's adapter.
    """

    source: Path
    extended: Path
    found: Calibrated
    loop: Loop
    adapter: Path

    @property
    def out(self) -> Path:
        return self.found.out

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.found.log.read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        """Of the rows of each step, before it."""
        return [event["loss"] for event in self.log if event["event"] == "step"]

    @property
    def held_out(self) -> list[dict[str, Any]]:
        return [event for event in self.log if event["event"] == "held_out"]

    @property
    def first_rows(self) -> list[Layout]:
        """The rows of the first step."""
        training = self.loop.training
        planned = plan_batch(training.mixture, training.plan.seed, 0)
        return [lay_out(training.plan, training.mixture.caches, row, planned.stage) for row in planned.rows]


class Bench:
    """Sources, documents and calibrations in one folder.

    Args:
        folder: of the test.
        monkeypatch: with which a run's loop and its best adapter are looked at; nothing is replaced.

    Attributes:
        watch: called with the loop before it trains.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CTXFORGE_CACHE", str(folder / "cache"))
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.documents = save_documents(folder / "documents.jsonl")
        self.watch: Callable[[Loop], None] = lambda _loop: None

    def extend(self, method: str, kind: str = "llama", *, out: str = "extended", **options: Any) -> tuple[Path, Path]:
        """A source and what `ctxforge extend` makes of it for TARGET tokens."""
        dtype, changes = options.pop("dtype", torch.float32), options.pop("changes", {})
        source = self.folder / "source"
        if not source.exists():
            save_source(source, kind, dtype, **changes)
        ctxforge.extend(source, method=method, to=TARGET, out=self.folder / out, **options)
        return source, self.folder / out

    def calibrate(
        self,
        checkpoints: tuple[Path, Path],
        recipe: str,
        changes: Sequence[str] = (),
        *,
        steps: int = STEPS,
        out: str = "out",
        lengths: dict[str, int] | None = None,
        **options: Any,
    ) -> Run:
        """Calibrate for a few steps."""
        source, extended = checkpoints
        loops: list[Loop] = []
        kept = self.folder / f"{out}-adapter"

        def watch_train(loop: Loop, *rest: Any) -> Any:
            loops.append(loop)
            self.watch(loop)
            return train(loop, *rest)

        def watch_finish(checkpoint: Any, adapter: Path, *rest: Any, **more: Any) -> Any:
            shutil.copytree(adapter, kept)
            return finish(checkpoint, adapter, *rest, **more)

        with self.monkeypatch.context() as patch:
            train, finish = calibrating.train, calibrating.finish
            patch.setattr(calibrating, "train", watch_train)
            patch.setattr(calibrating, "finish", watch_finish)
            found = calibrate(
                extended,
                self.folder / out,
                read_recipe(recipe, (*SMALL, *changes), steps=steps),
                CalibrationOptions(**{"data": (str(self.documents),), **options}),
                **(lengths or {}),
            )
        assert found is not None
        return Run(source, extended, found, loops[0], kept)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def stock(folder: Path, dtype: torch.dtype = torch.float32, *, trust: bool = False) -> Any:
    """The model in a folder as anyone would load it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust).eval()


def unmerged(run: Run, *, trust: bool = False) -> Any:
    """The extended model with the best step's adapter beside its weights."""
    model = stock(run.extended, trust=trust)
    trained = attach(model, read_checkpoint(run.extended), read_adapter(run.adapter).recipe)
    restore_adapter(run.adapter, trained)
    return model


def logits(model: Any, length: int = 200, seed: int = 5) -> torch.Tensor:
    """Logits [1, length, V] of a text that continues the alphabet, then of random tokens."""
    alphabet = [3 + (at % 26) for at in range(length // 2)]
    random_ids = np.random.default_rng(seed).integers(3, VOCAB, length - len(alphabet)).tolist()
    ids = torch.tensor([alphabet + random_ids])
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return found


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference as a share of the largest entry."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def alone(rows: Sequence[Layout]) -> list[Layout]:
    """Every document of the rows as a row of its own."""
    found = []
    for row in rows:
        for document in range(int(row.documents[-1]) + 1):
            mine = row.documents == document
            first = np.zeros(int(mine.sum()), np.int64)
            found.append(Layout(row.ids[mine], row.positions[mine], first, row.weights[mine], row.extended[mine]))
    return found


def losses(model: Any, row: Layout, visible: torch.Tensor | None = None) -> torch.Tensor:
    """Losses of a row's tokens but the first [T - 1], from whole logits under an explicit mask of all earlier tokens.

    Args:
        model: of transformers, loaded plainly.
        row: ids and positions.
        visible: which keys each query sees, [heads, T, T]; None for all earlier ones.
    """
    ids, positions = torch.tensor(row.ids)[None], torch.tensor(row.positions)[None]
    if visible is None:
        visible = torch.ones(1, row.length, row.length, dtype=torch.bool).tril()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None]
    # Code of our own takes no explicit mask, and needs none for one text.
    given = torch.ones_like(ids) if getattr(model.config, "auto_map", None) else mask
    if positions.is_floating_point():
        positions = positions.float()
    found = model(input_ids=ids, position_ids=positions, attention_mask=given, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(found.float(), ids[0, 1:], reduction="none")


def counted(row: Layout) -> torch.Tensor:
    """Which tokens but the first are predicted, bool [T - 1]."""
    return torch.tensor(row.weights[1:] > 0)


def mean_loss(model: Any, rows: Sequence[Layout]) -> float:
    """Mean loss of the predicted tokens of all documents, each alone."""
    with torch.no_grad():
        return float(torch.cat([losses(model, row)[counted(row)].double() for row in alone(rows)]).mean())


def gradient_norm(model: Any, rows: Sequence[Layout], weights: Sequence[torch.Tensor] | None = None) -> float:
    """Norm of the gradient of that mean over all parameters; tokens of each document weighed by `weights` if given."""
    model.requires_grad_(True)
    model.zero_grad()
    parts = alone(rows)
    count = sum(int(counted(row).sum()) for row in parts)
    for number, row in enumerate(parts):
        each = losses(model, row) * counted(row)
        (each if weights is None else each * weights[number]).sum().div(count).backward()
    squares = [one.grad.double().square().sum() for one in model.parameters() if one.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def long_nll(model: Any, run: Run) -> float:
    """Mean loss of the held-out long windows beyond TRAINED tokens, a plain pass each."""
    found = []
    for window in run.found.trained.windows.long:
        ids = torch.tensor(window.ids)[None]
        with torch.no_grad():
            table = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(table.double(), ids[0, 1:], reduction="none")
        found.append(each[-(len(window.ids) - TRAINED) :])
    return float(torch.cat(found).mean())


def learned(run: Run, gain: float = 0.3) -> None:
    """Held-out losses fell, at the target length and below, and so did those of the rows."""
    first, last = run.held_out[0], run.held_out[-1]
    assert (first["step"], last["step"]) == (0, run.found.plan.recipe.steps)
    assert last["long_nll"] < first["long_nll"] - gain
    assert last["short_nll"] < first["short_nll"] - gain
    assert run.losses[-1] < run.losses[0] - gain
    assert run.found.best_step == last["step"]


def written_as_trained(run: Run, *, trust: bool = False, tolerance: float = 1e-5) -> Any:
    """What was written loads as it stands and is the trained model; the checkpoint before is not. Gives the model."""
    model = stock(run.out, trust=trust)
    wanted = logits(unmerged(run, trust=trust))
    assert difference(logits(model), wanted) < tolerance
    assert difference(logits(stock(run.extended, trust=trust)), wanted) > max(1e-2, 3 * tolerance)
    best, written = run.found.best, run.found.written
    assert written.long_nll == pytest.approx(best.long_nll, rel=tolerance)
    assert written.short_nll == pytest.approx(best.short_nll, rel=tolerance)
    assert written.long_nll == pytest.approx(long_nll(model, run), rel=1e-5)
    assert best.document() == {key: value for key, value in run.held_out[-1].items() if key in best.document()}
    assert (run.out / "config.json").read_bytes() == (run.extended / "config.json").read_bytes()
    record = json.loads((run.out / FILE_NAME).read_text())
    assert [entry["recipe"] for entry in record["calibrations"]] == [run.found.plan.recipe.name]
    report = static_checks.check(str(run.out))
    assert report.passed, [one for one in report.checks if one.verdict != "pass"]
    return model
