"""Rows on a model that peft has wrapped, in training mode with recomputed layers: the form that a loop uses."""

from __future__ import annotations

import pytest
import torch

from ctxforge.calibrate.placement import check_isolation, collate, model_inputs, pack, pose
from tests.calibrate.placement_models import difference, model_of, text

peft = pytest.importorskip("peft")


# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_wrapped_models_see_the_same(kind: str) -> None:
    plain = model_of(kind)
    batch = collate([pose(text(300), 64, 256, 3), pack([text(30, 1), text(21, 2)])])
    with torch.no_grad():
        wanted = plain(**model_inputs(batch, plain)).logits
    wrapped = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).train()
    enable = getattr(wrapped, "activation_checkpointing_enable", None) or wrapped.gradient_checkpointing_enable
    enable()
    found = check_isolation(wrapped, batch)
    assert (found.links, found.walls) == (1, 3)
    # B of LoRA starts at 0, so the wrapped model is the plain one.
    output = wrapped(**model_inputs(batch, wrapped)).logits
    assert difference(output.detach(), wanted) < 1e-5
    output.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in wrapped.parameters() if p.requires_grad)
