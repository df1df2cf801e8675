"""Blockwise causal attention with plain RoPE (2212.10554, section 3.3).

Positions are cut into blocks of b tokens, from position 0. A query sees the keys of its own block and of the one
before, up to itself, at their true distance, which is thus at most 2b - 1. Nothing is retrieved from farther back.

Queries are taken one block at a time, with the two blocks of keys that they may see: cost and memory are linear in the
length. A plain prompt needs no mask at all, its own block being causal and the one before seen whole; padded, packed
and cached calls have masks of [b, 2b]. Blocks follow the positions of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_pieces import Piece, attend_pieces, is_regular, with_sinks
from .ctxforge_runtime import RotarySystem, build_class, register
from .ctxforge_span import Output

# Blocks of a plain prompt whose states are rotated together.
_BLOCKS_AT_ONCE = 4


class BlockwiseCausal(RotarySystem):
    """Blockwise causal attention: parameter `block`, b in tokens."""

    name = "ctxforge_blockwise_causal"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.block = int(self.parameters["block"])

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv], one block of queries at a time."""
        if call.query.shape[2] > 1 and is_regular(call):
            return self._regular(module, call)
        parts = [self._part(module, call, queries) for queries in self._query_blocks(call)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _regular(self, module: nn.Module, call: Call) -> torch.Tensor:
        """A plain prompt, some blocks at a time, so that rotated states stay small."""
        blocks, output = list(self._query_blocks(call)), Output(call)
        for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
            some = blocks[first : first + _BLOCKS_AT_ONCE]
            queries = slice(some[0].start, some[-1].stop)
            keys = slice(blocks[max(first - 1, 0)].start, queries.stop)
            query, key = (
                self._turned(module, states[:, :, which], call.key_positions[:, which]).to(call.value.dtype)
                for states, which in ((call.query, queries), (call.key, keys))
            )
            pieces = list(self._pieces(blocks[max(first - 1, 0) : first + _BLOCKS_AT_ONCE], queries.start, keys.start))
            merged = attend_pieces(
                query, key, call.value[:, :, keys], pieces, scaling=call.scaling, softcap=call.softcap
            )
            output.add(with_sinks(call, *merged))
        return output.whole()

    @staticmethod
    def _pieces(blocks: list[slice], first_query: int, first_key: int) -> Iterator[Piece]:
        """Each block from `first_query` on with itself, and with the block before."""
        heads, before = slice(None), None
        for block in blocks:
            keys = slice(block.start - first_key, block.stop - first_key)
            if block.start >= first_query:
                queries = slice(block.start - first_query, block.stop - first_query)
                yield Piece(heads, queries, keys, causal=True, first=True)
                if before is not None:
                    yield Piece(heads, queries, before, causal=False)
            before = keys

    def _query_blocks(self, call: Call) -> Iterator[slice]:
        """Slices of at most b queries, cut where the first row's blocks begin."""
        total = call.query.shape[2]
        start = 0
        stop = min(total, self.block - int(call.query_positions[0, 0]) % self.block) if total > 1 else total
        while start < total:
            yield slice(start, stop)
            start, stop = stop, min(total, stop + self.block)

    def _part(self, module: nn.Module, call: Call, queries: slice) -> torch.Tensor:
        positions = call.query_positions[:, queries]
        keys = self._key_range(call, positions)
        key, value, key_positions = call.key[:, :, keys], call.value[:, :, keys], call.key_positions[:, keys]
        query = call.query[:, :, queries]
        apart = (positions // self.block)[:, :, None] - (key_positions // self.block)[:, None, :]
        mask = ((apart == 0) | (apart == 1))[:, None] & call.visible(queries, keys)
        query = self._turned(module, query, positions)
        key = self._turned(module, key, key_positions)
        return softmax_attention(call, query, key, value, mask)

    def _turned(self, module: nn.Module, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if not self.rotates(module):
            return states
        frequencies, temperature = self.frequencies(module, states.device)
        return rotate(states, positions, frequencies, interleaved=self.interleaved, amplitude=temperature)

    def _key_range(self, call: Call, positions: torch.Tensor) -> slice:
        """The smallest range of key indices that holds every key which queries at these positions may see."""
        first = (positions.amin(dim=1, keepdim=True) // self.block - 1) * self.block
        last = positions.amax(dim=1, keepdim=True)
        reachable = ((call.key_positions >= first) & (call.key_positions <= last)).any(dim=0).nonzero()
        return slice(int(reachable[0]), int(reachable[-1]) + 1)


register(BlockwiseCausal)


def __getattr__(name: str) -> Any:
    return build_class(name, BlockwiseCausal, globals())
