"""Where a model's decoder layers are."""

from __future__ import annotations

from typing import Any

import torch

from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.errors import UnsupportedError


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of a causal LM's decoder layers: the one list in its decoder as long as the config says.

    Raises:
        UnsupportedError: no such list, or several.
    """
    inner = causal_lm(model)
    config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
    count = getattr(config, "num_hidden_layers", None)
    decoder = inner.get_decoder()
    found = [part for part in decoder.children() if isinstance(part, torch.nn.ModuleList) and len(part) == count]
    if len(found) > 1:
        sizes = [sum(p.numel() for p in part.parameters()) for part in found]
        found = [part for part, size in zip(found, sizes, strict=True) if size == max(sizes)]
    if len(found) != 1:
        raise UnsupportedError(
            f"the decoder layers of {type(inner).__name__} can't be found",
            "calibrate without checkpointing, or a model of another architecture",
        )
    return found[0]
