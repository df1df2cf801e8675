"""Parts that many rows of the table share."""

from __future__ import annotations

from ctxforge.rope.architectures.types import Layers, QueryTensor

HEAD_NORM = QueryTensor(("self_attn.q_norm.weight",), "shared")
FLAT_NORM = QueryTensor(("self_attn.q_norm.weight",))
GEMMA_NORM = QueryTensor(("self_attn.q_norm.weight",), "shared", offset=1.0)
Q_LAYERNORM = QueryTensor(("self_attn.q_layernorm.weight",), "shared")
QKV_PROJ = QueryTensor(("self_attn.qkv_proj.weight",))

# A wrapper's checkpoints exist with each of these, by the transformers version that saved them.
WRAPPED = (
    "language_model.model.layers.{layer}.",
    "model.language_model.layers.{layer}.",
    "model.layers.{layer}.",
)
ALL_WINDOWED = Layers("window")
LINEAR_AND_FULL = ("linear_attention", "full_attention")


def every(period: int, key: str | None = None, *, last: bool = False) -> Layers:
    """Sliding layers, with a full one after each period - 1 of them."""
    return Layers("every", ("sliding_attention", "full_attention"), period, key, full_last=last)


def full_every(period: int, key: str | None = None) -> Layers:
    """Linear-attention layers, with a full-attention one after each period - 1 of them."""
    return Layers("every", LINEAR_AND_FULL, period, key)


def first_of(period: int) -> Layers:
    """A full layer, then period - 1 sliding ones."""
    return Layers("first-of", ("sliding_attention", "full_attention"), period)
