"""Tiny checkpoints for adapters: saved by transformers, made trainable, given random changes, merged, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ctxforge.calibrate.adapters import AdapterRecipe, Trained, attach, named_recipe, save_adapter
from ctxforge.checkpoint import Checkpoint, read_checkpoint
from tests.tiny_models import logits, save_tiny

LORA = named_recipe("lora", rank=4, alpha=6.0)
PLUS = named_recipe("lora+", rank=4, alpha=6.0)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def shake(trained: Trained, *, seed: int = 3, size: float = 0.05) -> None:
    """Give every trained number a random change, as a training that went well would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trained.tensors():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def trained_model(
    folder: Path, recipe: AdapterRecipe, *, dtype: torch.dtype = torch.float32, size: float = 0.05
) -> tuple[Any, Trained, Checkpoint]:
    """The model of a folder with an adapter that changes it."""
    checkpoint = read_checkpoint(folder)
    model = load(folder, dtype)
    trained = attach(model, checkpoint, recipe)
    shake(trained, size=size)
    return model, trained, checkpoint


def adapted(
    kind: str, tmp_path: Path, recipe: AdapterRecipe, *, dtype: torch.dtype = torch.float32
) -> tuple[Path, Path]:
    """A tiny checkpoint of a dtype, and an adapter on it that was trained in float32."""
    base = save_tiny(kind, tmp_path / "base", dtype=dtype)
    _, trained, _ = trained_model(base, recipe)
    return base, save_adapter(tmp_path / "adapter", trained)


__all__ = ["LORA", "PLUS", "adapted", "load", "logits", "save_tiny", "shake", "trained_model"]
