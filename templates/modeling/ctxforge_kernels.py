"""Fused attention kernels that also tell the logarithm of each query's sum of exponentials: parts can be merged.

Torch has one for CPUs, FlashAttention for bfloat16 and float16 on GPUs, and the memory-efficient one for float32 there.
None takes a soft cap, or values of another width than the keys.
"""

from __future__ import annotations

from typing import Any

import torch

_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention", None)
_EFFICIENT = getattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", None)
# FlashAttention takes heads up to this wide, in multiples of 8.
_WIDEST = 256


def has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `fused_attention` serves queries [..., D] and values [..., Dv] on their device, in their dtype."""
    width = query.shape[-1]
    if width != value.shape[-1]:
        return False
    if value.device.type == "cpu":
        return _CPU is not None
    if value.device.type != "cuda" or width % 8 or width > _WIDEST:
        return False
    if value.dtype in (torch.float16, torch.bfloat16):
        return _FLASH is not None and torch.cuda.get_device_capability(value.device)[0] >= 8
    return value.dtype == torch.float32 and _EFFICIENT is not None


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output [B, H, t, D] and the logarithm of the sums of exponentials [B, H, t], float32 at least; no gradients.

    Args:
        query, key, value: [B, H, t, D], [B, H, s, D], [B, H, s, D], of one dtype; see `has_kernel`.
        causal: query i sees keys up to i; needs t = s.
        scaling: factor on q.k.
    """
    found: Any
    if value.device.type == "cpu":
        found = _CPU(query, key, value, 0.0, causal, scale=scaling)
    elif value.dtype == torch.float32:
        found = _EFFICIENT(query, key, value, None, True, 0.0, causal, scale=scaling)
    else:
        found = _FLASH(query, key, value, 0.0, causal, False, scale=scaling)
    return found[0], found[1][:, :, : query.shape[2]]  # some kernels fill the sums up to a multiple of a tile
