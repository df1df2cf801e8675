"""A step's training with the source beside it, and what the source says of a text, computed plainly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctxforge.calibrate.adapters import weights_digest
from ctxforge.calibrate.data import plan_batch
from ctxforge.calibrate.objectives.restoration import Teacher
from ctxforge.calibrate.parallel import ParallelOptions, start
from ctxforge.calibrate.placement import Layout
from ctxforge.calibrate.recipes import CalibrationRecipe
from ctxforge.calibrate.run import model as models
from ctxforge.calibrate.run.optimiser import make_optimiser
from ctxforge.calibrate.run.request import Request
from ctxforge.calibrate.run.rows import lay_out
from ctxforge.calibrate.run.sources import mix, open_data
from ctxforge.calibrate.run.step import StepResult, Training, gradients
from ctxforge.verification.load import load_tokenizer
from ctxforge.verification.settings import VerifySettings
from tests.calibrate.data_builders import stretches, write_jsonl
from tests.calibrate.run_builders import build, request

Gradients = dict[str, torch.Tensor]


def restored_training(root: Path, asked: CalibrationRecipe, *, to: str = "2x", **changes: Any) -> Training:
    """A training of `build`'s base on long texts and on short ones of uneven length, beside its source."""
    build(root, to=to, **changes)
    texts = [
        *stretches(8),
        *(text[:length] for text, length in zip(stretches(5, apart=700), (3, 9, 17, 25, 6), strict=True)),
    ]
    write_jsonl(root / "data.jsonl", texts)
    return training_of(root, request(root, asked=asked))


def training_of(root: Path, made: Request) -> Training:
    """The same of a request."""
    tokenizer = load_tokenizer(Path(made.checkpoint.root or ""), VerifySettings())
    data = open_data(made.data, tokenizer, held_out_share=0.0, root=root / "tokens")
    processes = start(ParallelOptions())
    model = models.load(made.checkpoint, models.LoadOptions(), processes.device)
    loss_model, trained = models.make_trainable(model, made.checkpoint, made.plan, weights_digest(made.checkpoint))
    loss_model.train()
    prepared = processes.prepare(loss_model, trained, lambda groups: make_optimiser(made.plan, groups))
    assert made.source is not None
    teacher = Teacher(models.load(made.source, models.LoadOptions(), processes.device))
    return Training(made.plan, mix(made.plan, data), processes, prepared, 10**6, teacher=teacher)


def rows_of(training: Training, step: int = 0) -> list[Layout]:
    planned = plan_batch(training.mixture, training.plan.seed, step)
    return [lay_out(training.plan, training.mixture.caches, row, planned.stage) for row in planned.rows]


def step_of(training: Training, **changes: Any) -> tuple[StepResult, Gradients]:
    """The first step and its gradients."""
    found = gradients(replace(training, **changes), 0)
    return found, {name: parameter.grad.clone() for name, parameter in training.prepared.trained.tensors()}  # type: ignore[union-attr]


def worst(one: Gradients, other: Gradients) -> float:
    """Largest difference as a share of the largest number."""
    scale = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / scale


def plain_states(model: Any, ids: Any, positions: Any = None) -> list[torch.Tensor]:
    """States after each layer, [T, d], of one text under a written-out causal mask."""
    tokens = torch.tensor(np.array(ids))[None]
    size = tokens.shape[1]
    where = torch.arange(size) if positions is None else torch.tensor(np.array(positions))
    mask = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]
    found = model(
        input_ids=tokens,
        position_ids=where[None],
        attention_mask=mask,
        use_cache=False,
        output_hidden_states=True,
    )
    return [one[0] for one in found.hidden_states[1:]]


def plain_distance(student: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """The distance of one text's states [T, d], in float64."""
    layers = [
        ((ours.double() - theirs.double()) ** 2).sum(-1) / (theirs.double() ** 2).sum(-1)
        for ours, theirs in zip(student, target, strict=True)
    ]
    return torch.stack(layers).mean(0).sum()
