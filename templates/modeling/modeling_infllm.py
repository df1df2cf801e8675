"""InfLLM: a window, sinks, and for each query the blocks of the middle that it asks for (2402.04617).

A query at position m sees

    the keys n with m - n < W                                    at their true distance, as in LM-Infinite,
    the G sinks                                                  W away where they lie out of the window,
    the `topk` blocks with the highest scores among those        W away, every token of them,
        that lie wholly out of the window
    what lies between the last such block and the window,        W away.
        less than a block

Nothing ever falls between blocks and window, as in the published code (thunlp/InfLLM:inf_llm/attention/
context_manager.py, its "remainder"), and no distance exceeds W. With topk as large as the number of blocks it is full
attention with distances min(m - n, W); with topk = 0 and blocks of one token it is LM-Infinite.

A block stands for selection by the sum of its representatives' keys, head by head (ctxforge_block_memory.py). Its score
is the sum over the query heads of (R(W) q) . sum of k, so all heads of a layer choose the same blocks, as in the
published code. Two things differ from that code. It averages the queries of 512 prompt tokens before they choose: later
tokens then decide what earlier ones see, and another cut of the prompt gives another result. Here each query chooses
for itself, and a text computes the same in one pass, in chunks and token by token. And it ranks keys by the weights
that they got, we by the scores of the paper's equation 2, which no kernel has to hand out.

Layers with a sliding window of their own keep to it: all that it shows is seen, from W on as W away, and nothing is
retrieved, because the window bounds both distance and memory.

Cost of T queries and S keys: T (W + G + (topk + 1) block) scores at most, and T S / block products of all heads' width
to choose. Where scores must stand in memory (gradients, a soft cap, float32 on a GPU) all of 256 queries attend, under
a mask, to what any of them chose: T times the middle at worst, as full attention does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from .ctxforge_attention import Call
from .ctxforge_block_attention import Asked, attend_blocks, attend_masked
from .ctxforge_block_cache import BlockLayer, Keys, block_layer
from .ctxforge_block_memory import BlockGeometry, BlockMemory, Places, Turn
from .ctxforge_runtime import RotarySystem, build_class, register
from .ctxforge_span import key_reality, padding_mask


class InfLLM(RotarySystem):
    """Parameters `window` W, `sinks` G, `block`, `topk`, `representatives`, `offload`."""

    name = "ctxforge_infllm"
    make_mask = staticmethod(padding_mask)

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        names = ("window", "sinks", "block", "topk", "representatives")
        self.geometry = BlockGeometry(**{name: int(self.parameters[name]) for name in names})
        self.offload = bool(self.parameters["offload"])
        self.windowed: frozenset[int] = frozenset()

    def wire(self, model: nn.Module) -> None:
        """Take over the rotation; know which layers have a window of their own."""
        super().wire(model)
        layers = DynamicCache(config=model.config).layers
        self.windowed = frozenset(i for i, layer in enumerate(layers) if getattr(layer, "is_sliding", False))

    @staticmethod
    def fit_mask(mask: torch.Tensor, keys: int) -> torch.Tensor:
        """The mask as it is: it is about all tokens, wherever their keys are."""
        del keys
        return mask

    @torch.compiler.disable
    def remember(self, cache: Cache, layer: int, positions: torch.Tensor) -> torch.Tensor:
        """Positions of all keys of `layer`, from our own layer of the cache."""
        if layer in self.windowed:
            return super().remember(cache, layer, positions)
        return block_layer(cache, layer, self.geometry, self.name, offload=self.offload).expect(positions)

    @torch.compiler.disable
    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv].

        Raises:
            NotImplementedError: a mask of the caller's own, or positions that do not count up.
        """
        table, temperature = self.frequencies(module, call.query.device) if self.rotates(module) else (None, 1.0)
        turn = Turn(table, temperature, self.interleaved)
        if module.layer_idx in self.windowed:
            return attend_masked(call, turn, self.geometry.window)
        held = None if call.cache is None else call.cache.layers[module.layer_idx]
        if isinstance(held, BlockLayer):
            assert held.positions is not None
            real = self._real(call, held.positions)
            output = self._answer(call, turn, held.positions, real, held)
            held.settle(real)
            return output
        if call.mask is not None and call.mask.shape[2] > 1:
            texts = list(_packed(call))
            if texts:
                return self._separately(call, turn, texts)
        real = self._real(call, call.key_positions)
        return self._answer(call, turn, call.key_positions, real)

    def _answer(
        self,
        call: Call,
        turn: Turn,
        positions: torch.Tensor,
        real: torch.Tensor | None,
        held: BlockLayer | None = None,
    ) -> torch.Tensor:
        places = Places(positions, real, self.name)
        if held is None:
            keys, memory, near = Keys(call.key, call.value), BlockMemory(self.geometry), None
        else:
            keys, memory, near = held.all_keys(), held.memory, held.near
        if self.geometry.topk:
            past = positions.shape[1] - call.query.shape[2]
            if past and not memory.counts:
                raise RuntimeError(f"{self.name} chooses by the queries that came before: it needs its own cache")
            memory.update(call.query, keys, places, turn, past)
        return attend_blocks(Asked(call, self.geometry, positions, real, places, keys, memory, turn, near))

    def _separately(self, call: Call, turn: Turn, texts: list[tuple[int, slice]]) -> torch.Tensor:
        """Texts packed into rows, each as if alone."""
        output = call.query.new_empty(*call.query.shape[:3], call.value.shape[3], dtype=call.value.dtype)
        for row, span in texts:
            states = {name: getattr(call, name)[row : row + 1, :, span] for name in ("query", "key", "value")}
            places = call.query_positions[row : row + 1, span]
            alone = replace(call, **states, query_positions=places, key_positions=places, mask=None)
            output[row : row + 1, :, span] = self._answer(alone, turn, places, None)
        return output

    def _real(self, call: Call, positions: torch.Tensor) -> torch.Tensor | None:
        """Bool [B, S]: keys that count; None where all do."""
        mask = call.mask
        if mask is not None and mask.shape[2] > 1:
            newest, total = mask[:, 0, -1], mask.shape[3]
            rows = torch.arange(total - mask.shape[2], total, device=mask.device)[:, None]
            plain = (torch.arange(total, device=mask.device) <= rows) & newest[:, None]
            asking = newest[:, -mask.shape[2] :, None]
            if total != positions.shape[1] or bool(((mask[:, 0] != plain) & asking).any()):
                raise NotImplementedError(
                    f"{self.name} takes padding masks only: a mask [rows, 1, queries, keys] of your own does not say"
                    " what may be retrieved"
                )
            mask = newest[:, None, None]
        return key_reality(replace(call, key_positions=positions, mask=mask))


def _packed(call: Call) -> Iterator[tuple[int, slice]]:
    """Row and tokens of each text, where rows are several texts in turn and the mask shows no more than that."""
    assert call.mask is not None
    positions, mask = call.query_positions, call.mask[:, 0]
    total = positions.shape[1]
    if mask.shape[1] != mask.shape[2] or call.key.shape[2] != total:
        return
    text = (positions == 0).cumsum(dim=1)
    plain = torch.ones(total, total, dtype=torch.bool, device=mask.device).tril()
    if bool((positions[:, 0] != 0).any()) or bool((mask != (text[:, :, None] == text[:, None]) & plain).any()):
        return
    for row in range(positions.shape[0]):
        starts = (positions[row] == 0).nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], total], strict=True):
            yield row, slice(start, stop)


register(InfLLM)


def __getattr__(name: str) -> Any:
    return build_class(name, InfLLM, globals())
