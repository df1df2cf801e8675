"""Lambda-shaped attention: the first G tokens of a text (sinks) and the last W, at distances that stay within a bound.

A query at position m sees the keys with m - n < W at their true distance, and the sinks j < G. A sink that lies farther
back than the window counts as

    LM-Infinite (2308.16137; Glaciohound/LM-Infinite:models/lambda_attention.py)         W tokens away, each of them
    StreamingLLM (2309.17453; mit-han-lab/streaming-llm:streaming_llm/pos_shift)         min(m, G + W - 1) - j away:
                                                                          its place in a cache of G + W tokens.

Published code attends in full over a prompt (StreamingLLM), or is wrong on grouped-query models and padded rows
(LM-Infinite). Here a prompt is attended in blocks of queries, each over the sinks and W + block keys, so that time is
linear in its length and no tensor of T x S ever exists. Positions decide, row by row, which tokens are sinks and how
far away a key is; inside a block they count from the block, so that they stay exact however long the text.

Geometry depends on the data, so a compiled model runs this part as it stands: a break in its graph.

With `evict`, the cache keeps G + W - 1 tokens (ctxforge_window_cache.py); without, all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .ctxforge_attention import Call
from .ctxforge_lambda import attend_blocks, attend_one
from .ctxforge_runtime import RotarySystem, build_class, register
from .ctxforge_span import Geometry, Span, key_reality, padding_mask
from .ctxforge_window_cache import WindowLayer, evicting_layer


class LambdaWindow(RotarySystem):
    """Parameters `window` W, `sinks` G, `sink_distance` "ceiling" or "cache", and `evict`."""

    name = "ctxforge_lambda_window"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.geometry = Geometry(
            int(self.parameters["window"]), int(self.parameters["sinks"]), str(self.parameters["sink_distance"])
        )
        self.evict = bool(self.parameters["evict"])

    make_mask = staticmethod(padding_mask)

    @staticmethod
    def fit_mask(mask: torch.Tensor, keys: int) -> torch.Tensor:
        """The mask as it is: it may be about the newest keys alone.

        Raises:
            NotImplementedError: it is about keys that were dropped.
        """
        if mask.shape[-1] > keys:
            raise NotImplementedError("a mask [rows, 1, queries, keys] of your own needs a cache that drops no keys")
        return mask

    @torch.compiler.disable
    def remember(self, cache: Cache, layer: int, positions: torch.Tensor) -> torch.Tensor:
        """Positions of all keys of `layer`, from the evicting layer itself where there is one."""
        if self.evict:
            found = evicting_layer(cache, layer, self.geometry.sinks, self.geometry.window, self.name)
            if found is not None:
                return found.expect(positions)
        return super().remember(cache, layer, positions)

    @torch.compiler.disable
    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv]; then the cache drops what it may."""
        layer = None if call.cache is None else call.cache.layers[module.layer_idx]
        held = layer if isinstance(layer, WindowLayer) else None
        if held is not None and call.mask is not None and call.mask.shape[2] > 1:
            raise NotImplementedError(
                f"{self.name} takes no mask of your own with an evicting cache: use padding masks"
            )
        real = key_reality(call)
        table, temperature = self.frequencies(module, call.query.device) if self.rotates(module) else (None, 1.0)
        span = Span(call, self.geometry, real, table, temperature, self.interleaved)
        output = attend_one(span) if call.query.shape[2] == 1 else attend_blocks(span)
        if held is not None:
            held.settle(real)
        return output


register(LambdaWindow)


def __getattr__(name: str) -> Any:
    return build_class(name, LambdaWindow, globals())
