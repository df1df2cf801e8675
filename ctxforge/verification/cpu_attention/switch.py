"""A model's attention replaced for a while, and whether that makes it faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ctxforge.errors import UnsupportedError
from ctxforge.verification.cpu_attention.bands import Band, MaskFunction, plan
from ctxforge.verification.cpu_attention.blocks import blocked_attention

# transformers gives names with "flash", "sdpa" or "/" in them a meaning of their own.
ATTENTION_NAME = "ctxforge_cpu_blocks"
# Below these lengths (measured) stock attention is as fast.
_SHORTEST_WINDOWED, _SHORTEST_EAGER = 2048, 2048

_REMEDY = "Use the model's stock attention."


@dataclass
class MaskRule:
    """What transformers is given in place of a mask tensor; the first layer that needs the bands plans them."""

    allowed: MaskFunction
    causal: bool
    batch: int
    length: int
    _bands: list[Band] = field(default_factory=list)

    def bands(self) -> list[Band] | None:
        """The bands of the rule, or None where it is plainly causal."""
        if not self.causal and not self._bands:
            self._bands = plan(self.allowed, self.length, self.batch)
        return None if self.causal else self._bands


def worth_it(model: Any, length: int) -> bool:
    """Whether `cpu_attention` makes a forward of `length` tokens of `model` faster, judged from its configuration.

    True on a CPU where transformers would run eager attention, or SDPA with a mask over at least twice the window.
    Plain causal models gain nothing, and get False.
    """
    if model.device.type != "cpu" or not model.is_backend_compatible():
        return False
    if model.config._attn_implementation == "eager":
        return length >= _SHORTEST_EAGER
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return False
    if kinds is not None and not any(kind in ("sliding_attention", "chunked_attention") for kind in kinds):
        return False
    return length >= max(_SHORTEST_WINDOWED, 2 * int(window))


@contextmanager
def cpu_attention(model: Any) -> Iterator[str]:
    """For the time of the block `model` attends through `attend`; its own attention is put back afterwards.

    Yields the name of the attention, to be recorded. Inside, a forward whose attention is not covered (padding, a
    cache, biases, dropout, gradients) raises UnsupportedError.

    Raises:
        UnsupportedError: the model is not on a CPU, or does not take its attention from transformers' registry.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.device.type != "cpu":
        raise UnsupportedError("block attention is for models on a CPU.", _REMEDY)
    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, _mask_rule)
    previous = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        if model.config._attn_implementation != ATTENTION_NAME:
            raise UnsupportedError(f"{type(model).__name__} does not take an attention function.", _REMEDY)
        yield ATTENTION_NAME
    finally:
        model.set_attn_implementation(previous)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: MaskRule | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers' `AttentionInterface`: query [B, H, L, d], key and value [B, H_kv, L, d].

    Returns the output [B, L, H, d_v] and no weights.
    """
    del module
    if not isinstance(attention_mask, MaskRule) or kwargs.get("position_bias") is not None:
        raise UnsupportedError("this model's attention has a bias or a mask of its own.", _REMEDY)
    if dropout:
        raise UnsupportedError("block attention has no dropout.", "Put the model into evaluation mode.")
    bands = attention_mask.bands()
    return blocked_attention(query, key, value, scale=scaling, bands=bands, softcap=softcap, sinks=s_aux), None


def _mask_rule(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: MaskFunction,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    **_kwargs: Any,
) -> MaskRule:
    """The mask function of transformers' `AttentionMaskInterface`: keeps the rule and builds nothing."""
    from transformers.masking_utils import causal_mask_function

    if q_length != kv_length:
        raise UnsupportedError("block attention does not work on a cache.", "Run the model with use_cache=False.")
    if use_vmap or (attention_mask is not None and not bool(attention_mask.all())):
        raise UnsupportedError("this model's mask is not a rule on indices.", _REMEDY)
    return MaskRule(mask_function, mask_function is causal_mask_function, batch_size, q_length)
