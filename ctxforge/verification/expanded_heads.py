"""SDPA with every query head's own copy of its keys: for float32 on a GPU.

torch's kernels that need no [L, L] matrix either take no float32 (flash) or no shared heads (memory-efficient), so a
model with grouped heads falls to the one that does: 154 GB at 64k tokens and nine heads. Copied keys cost a few
megabytes and keep the memory-efficient kernel in play.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ctxforge.errors import UnsupportedError

# transformers gives names with "flash", "sdpa" or "/" in them a meaning of their own.
ATTENTION_NAME = "ctxforge_expanded_heads"


def needs_expanding(model: Any) -> bool:
    """Whether this model would fall to the kernel with an [L, L] matrix: grouped heads, float32, CUDA, SDPA."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    shared = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    return bool(
        model.device.type == "cuda"
        and model.dtype == torch.float32
        and shared != getattr(config, "num_attention_heads", shared)
        and getattr(model.config, "_attn_implementation", "") == "sdpa"
    )


@contextmanager
def expanded_heads(model: Any) -> Iterator[str]:
    """Inside, `model` attends so; afterwards as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield ATTENTION_NAME
    finally:
        model.set_attn_implementation(before)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers' `AttentionInterface`: query [B, H, T, d], key and value [B, H_kv, S, d].

    Returns the output [B, T, H, d_v] and no weights.

    Raises:
        UnsupportedError: a softcap, sinks or a bias, which SDPA does not compute.
    """
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise UnsupportedError("SDPA computes no softcap, sinks or position bias.", "Leave the attention to the model.")
    each = query.shape[1] // key.shape[1]
    if each > 1:
        key, value = key.repeat_interleave(each, dim=1), value.repeat_interleave(each, dim=1)
    causal = attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True)
    found = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, is_causal=causal, scale=scaling
    )
    return found.transpose(1, 2).contiguous(), None
