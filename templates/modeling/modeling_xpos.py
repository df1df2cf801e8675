"""xPos on a RoPE model (2212.10554), with blockwise causal attention as an option.

Pair i of the query at position n is scaled by zeta_i^(n/B), of the key at m by zeta_i^(-m/B), so that q.k carries
zeta_i^((n - m)/B): zeta_i = (2i + 0.4 d) / (1.4 d), B the scale base in tokens. B without bound is RoPE itself.

Both scales are applied at attention time, in float32, about a centre near the queries: the centre cancels, and
exponents stay small however long the context (absolute ones overflow float32 past n/B = 71). A key far behind decays to
zero as it should.

The layout is the model's own. Published code scales and rotates interleaved pairs (2i, 2i + 1); on weights whose pairs
are half-split (i, i + d/2), as those of Llama, that is another function altogether, even without decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_runtime import RotarySystem, build_class, register

# Queries at most this many scale bases apart share a centre: a scale is then at most 0.2857^-2 = 12, within float16.
_REACH = 4


class XPos(RotarySystem):
    """xPos: parameters `scale_base` B in tokens, and `block_length` of blockwise causal attention or None."""

    name = "ctxforge_xpos"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.scale_base = float(self.parameters["scale_base"])
        block_length = self.parameters.get("block_length")
        self.block_length = None if block_length is None else int(block_length)

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv], one block of queries at a time."""
        blocks = [self._block(module, call, queries) for queries in self._query_blocks(call)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)

    def _query_blocks(self, call: Call) -> Iterator[slice]:
        total = call.query.shape[2]
        size = total if self.block_length is None else self.block_length
        for start in range(0, total, size):
            yield from self._within_reach(call.query_positions, start, min(start + size, total))

    def _within_reach(self, positions: torch.Tensor, start: int, stop: int) -> Iterator[slice]:
        """Halves of these queries until each half's positions are near enough to share a centre."""
        part = positions[:, start:stop]
        if stop - start == 1 or int((part.amax(dim=1) - part.amin(dim=1)).max()) <= _REACH * self.scale_base:
            yield slice(start, stop)
            return
        middle = (start + stop) // 2
        yield from self._within_reach(positions, start, middle)
        yield from self._within_reach(positions, middle, stop)

    def _block(self, module: nn.Module, call: Call, queries: slice) -> torch.Tensor:
        positions = call.query_positions[:, queries]
        keys = self._key_range(call, queries, positions)
        key, value, key_positions = call.key[:, :, keys], call.value[:, :, keys], call.key_positions[:, keys]
        query = call.query[:, :, queries]
        causal = self.block_length is None and call.mask is None and query.shape[2] == call.key.shape[2]
        mask = None
        if not causal and not (call.mask is None and call.query.shape[2] == 1):
            mask = call.visible(queries, keys)
        if self.block_length is not None:
            mask = self._near(positions, key_positions) if mask is None else mask & self._near(positions, key_positions)
        if self.rotates(module):
            query, key = self._encode(module, query, key, positions, key_positions)
        return softmax_attention(call, query, key, value, mask, causal=causal and query.shape[2] > 1)

    def _key_range(self, call: Call, queries: slice, positions: torch.Tensor) -> slice:
        """The smallest range of key indices that holds every key these queries may see."""
        if self.block_length is None:
            return slice(0, call.key.shape[2] - call.query.shape[2] + queries.stop)
        first = (positions.amin(dim=1, keepdim=True) // self.block_length - 1) * self.block_length
        last = positions.amax(dim=1, keepdim=True)
        reachable = ((call.key_positions >= first) & (call.key_positions <= last)).any(dim=0).nonzero()
        return slice(int(reachable[0]), int(reachable[-1]) + 1)

    def _near(self, positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """Bool [B, 1, t, s]: the key is in the query's own block or in the one before."""
        assert self.block_length is not None
        apart = (positions // self.block_length)[:, :, None] - (key_positions // self.block_length)[:, None, :]
        return ((apart == 0) | (apart == 1))[:, None]

    def _encode(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate and scale about the middle of the queries' positions, row by row."""
        frequencies, temperature = self.frequencies(module, query.device)
        pairs = frequencies.shape[0]
        precise = torch.promote_types(query.dtype, torch.float32)
        index = torch.arange(pairs, device=frequencies.device, dtype=precise)
        decay = torch.log((2 * index + 0.8 * pairs) / (2.8 * pairs))
        lowest, highest = positions.amin(dim=1, keepdim=True), positions.amax(dim=1, keepdim=True)
        centre = (lowest + highest) // 2
        ahead = ((positions - centre).to(precise) / self.scale_base)[..., None] * decay
        # Keys past the newest query are hidden; without the bound their scale could overflow and turn 0 * inf to nan.
        behind = ((centre - torch.minimum(key_positions, highest)).to(precise) / self.scale_base)[..., None] * decay
        query = rotate(query, positions, frequencies, interleaved=self.interleaved, amplitude=ahead.exp() * temperature)
        key = rotate(
            key, key_positions, frequencies, interleaved=self.interleaved, amplitude=behind.exp() * temperature
        )
        return query, key


register(XPos)


def __getattr__(name: str) -> Any:
    return build_class(name, XPos, globals())
