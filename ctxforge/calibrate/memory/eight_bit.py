"""AdamW with 8-bit states, from bitsandbytes: an extra."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch

from ctxforge.errors import UnsupportedError, UsageError


def adamw_8bit(
    parameters: Iterable[Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    paged: bool = False,
    full_precision: Iterable[torch.nn.Module] = (),
) -> torch.optim.Optimizer:
    """AdamW whose two states take one byte a parameter each (arXiv 2110.02861).

    Tensors of fewer than 4096 elements keep 32-bit states, as bitsandbytes does it.

    Args:
        parameters: as any optimiser takes them: tensors, or groups with rates of their own.
        lr, betas, eps, weight_decay: as of AdamW.
        paged: states may move to the processor's memory when the GPU's is short.
        full_precision: modules whose weights keep 32-bit states: embeddings, as the paper advises.

    Raises:
        UsageError: bitsandbytes is not installed.
        UnsupportedError: a parameter is not on a GPU.
    """
    try:
        bitsandbytes: Any = import_module("bitsandbytes")
    except ImportError:
        raise UsageError(
            "the 8-bit optimiser needs bitsandbytes, which is not installed",
            "pip install 'ctxforge-llm[eight-bit]', or choose the plain optimiser",
        ) from None
    groups = list(parameters)
    tensors = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    if any(p.device.type not in ("cuda", "xpu") for p in tensors):
        raise UnsupportedError("the 8-bit optimiser runs on GPUs only", "choose the plain optimiser on a CPU")
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in full_precision:
        manager.register_module_override(module, "weight", {"optim_bits": 32})
    kind = bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit
    made: torch.optim.Optimizer = kind(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    return made
