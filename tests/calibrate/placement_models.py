"""Tiny sharp models for rows of a batch, and a dense reference of whole models with explicit distances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ctxforge.attention.reference import Pattern, dense_attention
from ctxforge.calibrate.placement import Layout
from tests.verification.tiny import VOCAB, tiny

WINDOW = 24
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "mistral": {"sliding_window": WINDOW},
    "gpt_neox": {"rotary_pct": 0.5},
}
# Gemma 2 refuses sdpa because of its soft cap.
PAIRS = [(kind, backend) for kind in KINDS for backend in ("eager", "sdpa") if (kind, backend) != ("gemma2", "sdpa")]
_NUMBERS = itertools.count()


def model_of(kind: str, backend: str = "eager", **changes: Any) -> Any:
    """A tiny model of a kind with a sharp attention, two layers, float32."""
    model = tiny(kind, **{**KINDS[kind], **changes})
    model.set_attn_implementation(backend)
    return model


def text(length: int, seed: int = 0) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(3, VOCAB, length)


def logits(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """Logits [B, T, V]."""
    with torch.no_grad():
        found: torch.Tensor = model(**arguments).logits
    return found


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference as a share of the largest entry."""
    return float((one - other).abs().max() / other.abs().max())


@contextmanager
def dense(model: Any, layout: Layout, *, count_tokens: bool = False) -> Iterator[None]:
    """Inside, `model` computes `layout` by explicit matrices: position_ids and masks that it is given do nothing.

    The rotary module is made the identity, and attention rotates by the matrix of distances itself. With `count_tokens`
    windows count tokens as transformers does, not positions: a control.
    """
    name = f"placement_reference_{next(_NUMBERS)}"
    rotary = next(module for path, module in model.named_modules() if path.endswith("rotary_emb"))
    frequencies, before = rotary.inv_freq.double(), model.config._attn_implementation
    at, documents = torch.tensor(layout.positions), torch.tensor(layout.documents)
    order = torch.arange(layout.length)
    distance = at[:, None] - at[None, :]
    visible = (order[:, None] >= order[None, :]) & (documents[:, None] == documents[None, :])
    kinds = getattr(model.config, "layer_types", None)

    def attend(module: Any, query: Any, key: Any, value: Any, _mask: Any, **options: Any) -> Any:
        window = getattr(model.config, "sliding_window", None)
        if kinds is not None and kinds[module.layer_idx] == "full_attention":
            window = None
        seen = visible
        if window is not None:
            measure = order[:, None] - order[None, :] if count_tokens else distance
            seen = visible & (measure < window)
        found = dense_attention(
            query.double(),
            key.double(),
            value.double(),
            frequencies,
            Pattern(seen[None], distance[None]),
            scaling=options["scaling"],
            softcap=options.get("softcap"),
        )
        return found.transpose(1, 2).to(query.dtype), None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda *_given, **_options: None)
    still = rotary.register_forward_hook(
        lambda _module, _args, output: (torch.ones_like(output[0]), torch.zeros_like(output[1]))
    )
    model.config._attn_implementation = name
    try:
        yield
    finally:
        still.remove()
        model.config._attn_implementation = before


def reference(model: Any, layout: Layout, *, count_tokens: bool = False) -> torch.Tensor:
    """Logits [1, T, V] of a row by `dense`."""
    with dense(model, layout, count_tokens=count_tokens):
        return logits(model, {"input_ids": torch.tensor(layout.ids)[None], "use_cache": False})
