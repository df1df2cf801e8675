"""One step's gradient, however its rows are cut into forward passes, is that of the mean over its tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from ctxforge.calibrate.adapters import weights_digest
from ctxforge.calibrate.data import plan_batch
from ctxforge.calibrate.parallel import ParallelOptions, start
from ctxforge.calibrate.placement import Layout
from ctxforge.calibrate.run import model as models
from ctxforge.calibrate.run.optimiser import make_optimiser
from ctxforge.calibrate.run.rows import lay_out
from ctxforge.calibrate.run.sources import mix, open_data
from ctxforge.calibrate.run.step import StepResult, Training, gradients
from ctxforge.verification.load import load_tokenizer
from ctxforge.verification.settings import VerifySettings
from tests.calibrate.data_builders import stretches, write_jsonl
from tests.calibrate.run_builders import build, recipe, request

Gradients = dict[str, torch.Tensor]


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """A full training whose step has long rows, and short ones of several documents and of uneven length."""
    build(tmp_path)
    texts = [
        *stretches(8),
        *(text[:length] for text, length in zip(stretches(5, apart=700), (3, 9, 17, 25, 6), strict=True)),
    ]
    write_jsonl(tmp_path / "data.jsonl", texts)
    asked = recipe(adapter="full", rows={"count": 6, "short_share": 0.5}, optimiser={"clip": None})
    made = request(tmp_path, asked=asked)
    tokenizer = load_tokenizer(tmp_path / "base", VerifySettings())
    data = open_data(made.data, tokenizer, held_out_share=0.0, root=tmp_path / "tokens")
    processes = start(ParallelOptions())
    model = models.load(made.checkpoint, models.LoadOptions(), processes.device)
    loss_model, trained = models.make_trainable(model, made.checkpoint, made.plan, weights_digest(made.checkpoint))
    loss_model.train()
    prepared = processes.prepare(loss_model, trained, lambda groups: make_optimiser(made.plan, groups))
    return Training(made.plan, mix(made.plan, data), processes, prepared, 10**6)


def rows_of(training: Training, step: int) -> list[Layout]:
    planned = plan_batch(training.mixture, training.plan.seed, step)
    return [lay_out(training.plan, training.mixture.caches, row, planned.stage) for row in planned.rows]


def step_of(training: Training, step: int, **changes: Any) -> tuple[StepResult, Gradients]:
    found = gradients(replace(training, **changes), step)
    return found, {name: parameter.grad.clone() for name, parameter in training.prepared.trained.tensors()}  # type: ignore[union-attr]


def worst(one: Gradients, other: Gradients) -> float:
    scale = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / scale


def test_passes_of_any_size_give_one_gradient(training: Training) -> None:
    rows = rows_of(training, 0)
    assert len({row.length for row in rows}) > 1
    assert {row.isolated for row in rows} == {True, False}
    large, expected = step_of(training, 0)
    for size in (1, 70, 130):
        found, grads = step_of(training, 0, tokens_at_once=size)
        assert found.loss == pytest.approx(large.loss, rel=1e-6)
        assert (found.tokens, found.counted) == (large.tokens, large.counted)
        assert found.norm == pytest.approx(large.norm, rel=1e-6)
        assert worst(expected, grads) < 1e-6
    assert large.tokens == sum(row.length for row in rows)
    assert large.counted == sum(int((row.weights > 0).sum()) for row in rows)
    # Another step is another gradient: the control.
    assert worst(expected, step_of(training, 1)[1]) > 1e-2


def test_the_gradient_is_that_of_the_mean_over_all_tokens(training: Training) -> None:
    """By hand: every document alone through the plain model, losses added up and divided once."""
    found, grads = step_of(training, 0, tokens_at_once=70)
    model, trained = training.prepared.inner.model, dict(training.prepared.trained.tensors())
    total, count, of_rows = torch.zeros((), dtype=torch.float64), 0, []
    for row in rows_of(training, 0):
        start = count
        before = float(total.detach())
        for document in range(int(row.documents[-1]) + 1):
            ids = torch.tensor(row.ids[row.documents == document])[None]
            if ids.shape[1] < 2:
                continue
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            total = total + cross_entropy(logits, ids[0, 1:], reduction="sum").double()
            count += ids.shape[1] - 1
        if count > start:
            of_rows.append((float(total.detach()) - before) / (count - start))
    assert found.counted == count
    assert found.loss == pytest.approx(float(total.detach()) / count, rel=1e-6)
    by_hand = torch.autograd.grad(total / count, list(trained.values()))
    assert worst(dict(zip(trained, by_hand, strict=True)), grads) < 1e-5
    # The mean of the rows' own means is another number.
    assert abs(sum(of_rows) / len(of_rows) - found.loss) > 1e-3


def test_clipping_keeps_the_direction(training: Training) -> None:
    loose, expected = step_of(training, 0)
    limit = 0.5 * loose.norm
    plan = replace(
        training.plan,
        recipe=replace(training.plan.recipe, optimiser=replace(training.plan.recipe.optimiser, clip=limit)),
    )
    tight, grads = step_of(training, 0, plan=plan)
    assert tight.norm == pytest.approx(loose.norm, rel=1e-6)  # told before clipping
    norm = torch.sqrt(sum((grad.double() ** 2).sum() for grad in grads.values()))
    assert float(norm) == pytest.approx(limit, rel=1e-4)
    assert worst({name: grad / 2 for name, grad in expected.items()}, grads) < 1e-4
