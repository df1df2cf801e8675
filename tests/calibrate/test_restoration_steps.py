"""A step's gradient with restoration: however it is cut and made to fit, that of loss and distances by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from ctxforge.calibrate.memory.estimate import StepOptions
from ctxforge.calibrate.recipes import CalibrationRecipe
from ctxforge.calibrate.run import model as models
from ctxforge.calibrate.run.step import Training
from ctxforge.calibration import make_request
from tests.calibrate.restoration_builders import (
    plain_distance,
    plain_states,
    restored_training,
    rows_of,
    step_of,
    training_of,
    worst,
)
from tests.calibrate.run_builders import TRAINED, options, recipe

WEIGHT = 3.0


def asked(**changes: Any) -> CalibrationRecipe:
    whole = {"adapter": "full", "rows": {"count": 6, "short_share": 0.5}, "optimiser": {"clip": None}}
    return recipe(**{**whole, "objective": {"restoration": WEIGHT}, **changes})


def by_hand(training: Training) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of the step, and its mean distance: every document alone in plain models, divided once."""
    assert training.teacher is not None
    model, source = training.prepared.inner.model, training.teacher.model
    trained = dict(training.prepared.trained.tensors())
    loss, apart, count, tokens_held = (torch.zeros((), dtype=torch.float64) for _ in range(4))
    for row in rows_of(training):
        within = 0
        for document in range(int(row.documents[-1]) + 1):
            ids = row.ids[row.documents == document]
            held = min(len(ids), TRAINED - within)
            within += len(ids)
            tokens_held += held
            target = [one.detach() for one in plain_states(source, ids[:held])]
            apart = apart + plain_distance([one[:held] for one in plain_states(model, ids)], target)
            counted = row.weights[row.documents == document][1:] > 0
            if counted.any():
                tokens = torch.tensor(ids)
                logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1][counted]
                loss = loss + cross_entropy(logits, tokens[1:][counted], reduction="sum").double()
                count += int(counted.sum())
    apart = apart / tokens_held
    total = loss / count + WEIGHT * apart
    found = torch.autograd.grad(total, list(trained.values()))
    return dict(zip(trained, found, strict=True)), float(apart.detach())


def test_passes_of_any_size_and_ways_to_fit_give_the_gradient_by_hand(tmp_path: Path) -> None:
    training = restored_training(tmp_path, asked())
    rows = rows_of(training)
    assert {row.isolated for row in rows} == {True, False}
    assert len({row.length for row in rows}) > 1
    large, expected = step_of(training)
    hand, apart = by_hand(training)
    assert large.apart == pytest.approx(apart, rel=1e-5)
    assert apart > 0.1
    assert worst(hand, expected) < 1e-4
    # Without the source the gradient is another, and the loss that is told the same.
    plain, without = step_of(training, teacher=None)
    assert worst(expected, without) > 0.1
    assert plain.loss == large.loss
    assert plain.apart is None
    for size in (1, 70, 130):
        found, grads = step_of(training, tokens_at_once=size)
        assert found.norm == pytest.approx(large.norm, rel=1e-6)
        assert worst(expected, grads) < 1e-6
    model = training.prepared.inner.model
    models.apply_memory(model, StepOptions(checkpoint=True, tile_tokens=8))
    for size in (70, 10**6):
        assert worst(expected, step_of(training, tokens_at_once=size)[1]) < 1e-6


def test_a_model_that_is_its_source_is_held_to_nothing(tmp_path: Path) -> None:
    """At its own positions; where they jump, interpolation or not, the source itself is far from itself."""
    restored_training(tmp_path, asked())
    for placement, same in (("full-length", True), ("pose", False)):
        rows = {"count": 6, "short_share": 0.5, "placement": placement, "content": "contiguous"}
        made = make_request(
            tmp_path / "source",
            tmp_path / "out",
            asked(rows=rows),
            options(tmp_path),
            source=str(tmp_path / "source"),
            trained_length=TRAINED,
            target_length=2 * TRAINED,
        )
        training = training_of(tmp_path, made)
        (_, expected), (_, without) = step_of(training), step_of(training, teacher=None)
        difference = worst(without, expected)
        assert difference < 1e-5 if same else difference > 0.01


def test_a_few_steps_bring_the_states_of_pi_at_4x_back(tmp_path: Path) -> None:
    lora = {"kind": "lora", "rank": 8, "alpha": 16.0, "low_rank": ["attention", "mlp"], "whole": ["norm"]}
    rows = {"count": 6, "short_share": 0.5, "placement": "pose", "content": "contiguous"}
    training = restored_training(tmp_path, asked(adapter=lora, rows=rows, objective={"restoration": 30.0}), to="4x")
    start = [one.detach().clone() for _, one in training.prepared.trained.tensors()]

    def held(mine: Training) -> list[float]:
        """Mean distance of the step's tokens before and after 6 steps."""
        with torch.no_grad():
            for (_, one), value in zip(training.prepared.trained.tensors(), start, strict=True):
                one.copy_(value)
        optimiser = torch.optim.AdamW([one for _, one in training.prepared.trained.tensors()], lr=0.01)
        found = []
        for number in range(7):
            step_of(mine)
            if number in (0, 6):
                found.append(mean_distance(training))
            optimiser.step()
        return found

    before, after = held(training)
    same, alone = held(replace(training, teacher=None))
    assert before == same > 0.2
    assert after < 0.6 * before
    assert alone > before  # the text of a random source says nothing of its states


def mean_distance(training: Training) -> float:
    assert training.teacher is not None
    model, source = training.prepared.inner.model.eval(), training.teacher.model
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows_of(training):
            for document in range(int(row.documents[-1]) + 1):
                mine = row.documents == document
                ours = plain_states(model, row.ids[mine], row.positions[mine])
                total += float(plain_distance(ours, plain_states(source, row.ids[mine])))
                count += int(mine.sum())
    training.prepared.inner.train()
    return total / count
