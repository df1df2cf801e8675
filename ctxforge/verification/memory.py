"""What fits into memory: an estimate for the message when a measurement ran out of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of the hidden size: the residual stream, its norm, queries, keys, values, attention's output, and one in float32.
_HIDDEN_COPIES = 8
# Of the MLP's width: gate, up and their product.
_WIDE_COPIES = 3


def longest_that_fits(config: Any, weight_bytes: int, memory_bytes: int, dtype: str) -> int:
    """About how many tokens one pass without a KV cache can have, in hundreds; 0 when the weights alone are too much.

    Only one layer's activations live at a time: some copies of the hidden states and of the MLP's inner width. The
    estimate leaves a tenth of the memory free.

    Args:
        config: of transformers; nested text configs are looked into.
        weight_bytes: size of the weights in float32.
        memory_bytes: of the device.
        dtype: of weights and activations.
    """
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = int(getattr(inner, "hidden_size", 0) or getattr(inner, "n_embd", 0) or 0)
    wide = int(getattr(inner, "intermediate_size", 0) or 4 * hidden)
    size = _BYTES[dtype]
    left = 0.9 * memory_bytes - weight_bytes * size / 4
    per_token = size * (_HIDDEN_COPIES * hidden + _WIDE_COPIES * wide)
    return max(0, int(left / per_token) // 100 * 100) if per_token else 0


def weight_bytes(folder: Path, config: Any) -> int:
    """Size in float32 of the weights that lie in a checkpoint's folder, by the sizes of its files."""
    stored = sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    name = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return stored * 4 // _BYTES.get(name, 4)


def device_memory(device: str) -> int:
    """Bytes of memory of a device: a GPU's own, or the machine's as far as this process may use it."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            found = min(found, int(limit.read_text()))
        except (OSError, ValueError):
            continue
    return found
