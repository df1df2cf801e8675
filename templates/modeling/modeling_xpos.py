"""xPos on a RoPE model (2212.10554), with blockwise causal attention as an option.

Pair i of the query at position n is scaled by zeta_i^(n/B), of the key at m by zeta_i^(-m/B), so that q.k carries
zeta_i^((n - m)/B): zeta_i = (2i + 0.4 d) / (1.4 d), B the scale base in tokens. B without bound is RoPE itself.

Both scales are applied at attention time, in float32, from a reference point near the queries, which cancels: the
start of the stretch of 2 B tokens that the query is in. A query is scaled by at least 0.2857^2 and a visible key by at
most 0.2857^-2 = 12, within float16, however long the context (absolute exponents overflow float32 past n/B = 71). A
key far behind decays to zero as it should. Within one stretch a key's scale is fixed: decoding keeps rotated and scaled
keys beside the cache, and makes them anew where the next stretch begins.

The layout is the model's own. Published code scales and rotates interleaved pairs (2i, 2i + 1); on weights whose pairs
are half-split (i, i + d/2), as those of Llama, that is another function altogether, even without decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_key_store import stored
from .ctxforge_runtime import RotarySystem, build_class, register

# Scale bases to a stretch of positions with one reference point.
_STRETCH = 2


class XPos(RotarySystem):
    """xPos: parameters `scale_base` B in tokens, and `block_length` of blockwise causal attention or None."""

    name = "ctxforge_xpos"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.scale_base = float(self.parameters["scale_base"])
        block_length = self.parameters.get("block_length")
        self.block_length = None if block_length is None else int(block_length)
        self.stretch = max(1, int(_STRETCH * self.scale_base))

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv], one block of queries at a time."""
        blocks = list(self._query_blocks(call))
        if len(blocks) == 1 and self.rotates(module):
            return self._block(module, call, blocks[0], self._stored_keys(module, call))
        found = [self._block(module, call, queries) for queries in blocks]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def _query_blocks(self, call: Call) -> Iterator[slice]:
        """Slices in which each row's queries share a stretch."""
        total = call.query.shape[2]
        cuts = {0, total} if self.block_length is None else {*range(0, total, self.block_length), total}
        if total > 1:
            stretch = call.query_positions // self.stretch
            changes = (stretch[:, 1:] != stretch[:, :-1]).any(dim=0).nonzero()[:, 0] + 1
            cuts.update(changes.tolist())
        yield from (slice(start, stop) for start, stop in pairwise(sorted(cuts)))

    def _block(
        self, module: nn.Module, call: Call, queries: slice, encoded: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of these queries; `encoded` holds all keys rotated and scaled for them, where they are kept."""
        positions = call.query_positions[:, queries]
        keys = self._key_range(call, queries, positions)
        value, key_positions = call.value[:, :, keys], call.key_positions[:, keys]
        query, key = call.query[:, :, queries], (call.key if encoded is None else encoded)[:, :, keys]
        causal = self.block_length is None and call.mask is None and query.shape[2] == call.key.shape[2]
        mask = None
        if not causal and not (call.mask is None and call.query.shape[2] == 1):
            mask = call.visible(queries, keys)
        if self.block_length is not None:
            mask = self._near(positions, key_positions) if mask is None else mask & self._near(positions, key_positions)
        if self.rotates(module):
            reference = positions[:, :1] // self.stretch * self.stretch
            query = self._encode(module, query, positions, positions - reference)
            if encoded is None:
                key = self._encode_keys(module, key, key_positions, reference)
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

    def _stored_keys(self, module: nn.Module, call: Call) -> torch.Tensor:
        """All keys, rotated and scaled for queries of one stretch a row, [B, K, S, D]."""
        stretch = call.query_positions[:, :1] // self.stretch

        def make(keys: slice) -> tuple[torch.Tensor]:
            states, positions = call.key[:, :, keys], call.key_positions[:, keys]
            return (self._encode_keys(module, states, positions, stretch * self.stretch),)

        (found,) = stored(self, module, call, make, label=tuple(stretch[:, 0].tolist()))
        return found

    def _encode_keys(
        self, module: nn.Module, key: torch.Tensor, positions: torch.Tensor, reference: torch.Tensor
    ) -> torch.Tensor:
        """Keys for queries of the stretch that begins at `reference`, [B, 1]."""
        # A key past the stretch is hidden; without the bound its scale could overflow and turn 0 * inf to nan.
        behind = reference - torch.minimum(positions, reference + self.stretch)
        return self._encode(module, key, positions, behind)

    def _encode(
        self, module: nn.Module, states: torch.Tensor, positions: torch.Tensor, ahead: torch.Tensor
    ) -> torch.Tensor:
        """Rotated by `positions` and scaled by zeta^(ahead / B), both [B, N]; the dtype stays."""
        frequencies, temperature = self.frequencies(module, states.device)
        pairs = frequencies.shape[0]
        precise = torch.promote_types(states.dtype, torch.float32)
        index = torch.arange(pairs, device=frequencies.device, dtype=precise)
        decay = torch.log((2 * index + 0.8 * pairs) / (2.8 * pairs))
        amplitude = ((ahead.to(precise) / self.scale_base)[..., None] * decay).exp() * temperature
        turned = rotate(states, positions, frequencies, interleaved=self.interleaved, amplitude=amplitude)
        return turned.to(states.dtype)


register(XPos)


def __getattr__(name: str) -> Any:
    return build_class(name, XPos, globals())
