"""Two rotations in one batch equal two models, with gradients and recomputed layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ctxforge.calibrate.placement import collate, full_length, mixed_windows, model_inputs, two_rotations
from ctxforge.errors import UnsupportedError
from ctxforge.verification.swap import TableValues
from tests.calibrate.placement_models import difference, logits, model_of, text
from tests.verification.tiny import LONGROPE, YARN

PLAIN = [TableValues(None, (10000.0 ** (-np.arange(0, 16, 2) / 16)).tolist(), 1.0)]
DOCUMENTS = [text(20, 1), text(50, 2), text(12, 3)]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_short_texts_keep_their_rotation(kind: str) -> None:
    extended, source = model_of(kind, rope_parameters=YARN), model_of(kind)
    row = mixed_windows(DOCUMENTS, 80, 30)
    before = logits(extended, model_inputs(row, extended))
    with two_rotations(extended, PLAIN) as choose:
        batch = collate([row, full_length(text(80, 4))])
        choose(batch.extended)
        found = logits(extended, model_inputs(batch, extended))
        choose(None)
        assert torch.equal(logits(extended, model_inputs(row, extended)), before)
    assert torch.equal(logits(extended, model_inputs(row, extended)), before)
    wanted = [
        logits(model, model_inputs(full_length(ids), model))[0]
        for model, ids in zip((source, extended, source), (*DOCUMENTS[:2], DOCUMENTS[2][:10]), strict=True)
    ]
    assert difference(found[0], torch.cat(wanted)) < 1e-5
    assert difference(found[1], logits(extended, model_inputs(full_length(text(80, 4)), extended))[0]) < 1e-5
    # Control: with one rotation the short texts are others.
    assert difference(before[0, :20], wanted[0]) > 1e-2


def test_recomputed_layers_keep_the_choice() -> None:
    model = model_of("llama", rope_parameters=YARN).train()
    row = mixed_windows(DOCUMENTS, 80, 30)
    gradients: list[Any] = []
    for recompute in (False, True):
        if recompute:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model.requires_grad_(True).zero_grad()
        with two_rotations(model, PLAIN) as choose:
            choose(row.extended[None])
            model(**model_inputs(row, model)).logits.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_refused() -> None:
    model = model_of("llama", rope_parameters=YARN)
    with (
        pytest.raises(UnsupportedError, match="8 frequencies where 3"),
        two_rotations(model, [TableValues(None, [1.0, 0.5, 0.1], 1.0)]),
    ):
        pass
    with (
        pytest.raises(UnsupportedError, match="depends on the length"),
        two_rotations(model_of("llama", rope_parameters=LONGROPE), PLAIN),
    ):
        pass
    with two_rotations(model, PLAIN) as choose:
        choose(np.zeros((1, 5), dtype=bool))
        with pytest.raises(UnsupportedError, match="rotations chosen for"):
            logits(model, model_inputs(full_length(text(9)), model))
