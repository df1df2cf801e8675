"""LongNet's dilated attention (2307.02486).

Branch (w, r) cuts positions into segments of w tokens; in each, head h keeps the tokens whose place in the segment is
h mod r modulo r, and these attend to one another causally. The branches are mixed by their softmax denominators, which
is softmax over all keys at once, a key that a query meets in c branches counting c times: scores get + log c. The
first branch has r = 1, so every token sees itself. Segments do not overlap: the first token of a segment of the
longest branch sees itself alone.

Where positions are regular and nothing is hidden but the future, each branch is computed on its own tokens: the cost
is T sum(w / 2 r^2) scores a head, and a decoded token's sum(w / r^2) at most. Padded, packed or chunked calls take
blocks of queries with the explicit log c over the longest segment's keys: the same function, at T w_max.

Published code mixes with detached denominators (microsoft/torchscale), gives heads other offsets (contiguous groups of
them) and decodes wrongly past one segment; here the mixture is part of the gradient, as the formula says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_pieces import Piece, attend_pieces, is_regular, with_sinks
from .ctxforge_runtime import RotarySystem, build_class, register
from .ctxforge_span import Output

# Scores, over rows, heads, queries and keys, whose bias stands in memory at once.
_LARGEST_BIAS = 2**24


class LongNet(RotarySystem):
    """Dilated attention: parameters `segments` w and `dilations` r, a list of each."""

    name = "ctxforge_longnet"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        segments, dilations = self.parameters["segments"], self.parameters["dilations"]
        self.branches = [(int(segment), int(dilation)) for segment, dilation in zip(segments, dilations, strict=True)]

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv]."""
        call = self._within_reach(call)
        regular = is_regular(call)
        if regular and call.query.shape[2] == 1:
            return with_sinks(call, *self._single(module, call))
        if not regular:
            query = self._turned(module, call.query, call.query_positions, call.value.dtype)
            key = self._turned(module, call.key, call.key_positions, call.value.dtype)
            return self._by_positions(replace(call, query=query, key=key))
        output = Output(call)
        for tokens in self._longest_segments(call):
            output.add(self._segment(module, call, tokens))
        return output.whole()

    def _longest_segments(self, call: Call) -> Iterator[slice]:
        """Tokens of a regular call that share a segment of the longest branch: nobody sees out of it."""
        longest = math.lcm(*(segment for segment, _ in self.branches))
        total = call.query.shape[2]
        start, stop = 0, longest - int(call.key_positions[0, 0]) % longest
        while start < total:
            yield slice(start, min(stop, total))
            start, stop = stop, stop + longest

    def _segment(self, module: nn.Module, call: Call, tokens: slice) -> torch.Tensor:
        """Attention's output [B, H, t, Dv] of tokens that see one another alone."""
        states = {name: getattr(call, name)[:, :, tokens] for name in ("query", "key", "value")}
        places = call.key_positions[:, tokens]
        part = replace(call, **states, query_positions=places, key_positions=places)
        query, key = (self._turned(module, one, places, call.value.dtype) for one in (states["query"], states["key"]))
        pieces = list(self._pieces(part))
        merged = attend_pieces(query, key, states["value"], pieces, scaling=call.scaling, softcap=call.softcap)
        return with_sinks(call, *merged)

    def _turned(
        self, module: nn.Module, states: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Rotated states, in `dtype`."""
        if self.rotates(module):
            frequencies, temperature = self.frequencies(module, states.device)
            states = rotate(states, positions, frequencies, interleaved=self.interleaved, amplitude=temperature)
        return states.to(dtype)

    def _single(self, module: nn.Module, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """The last token alone: output and logarithm of the denominators; only keys that it meets are rotated."""
        query = self._turned(module, call.query, call.query_positions, call.value.dtype)
        groups = query.shape[1] // call.key.shape[1]
        outputs, sums = [], []
        whole = slice(None)
        for piece in self._pieces(call):
            heads = torch.arange(query.shape[1], device=query.device)[piece.heads] // groups
            key, value = (states[:, :, piece.keys].index_select(1, heads) for states in (call.key, call.value))
            key = self._turned(module, key, call.key_positions[:, piece.keys], value.dtype)
            part, lse = attend_pieces(
                query[:, piece.heads],
                key,
                value,
                [Piece(whole, whole, whole, causal=False, first=True)],
                scaling=call.scaling,
                softcap=call.softcap,
            )
            outputs.append(part.new_zeros(*query.shape[:3], value.shape[3]))
            outputs[-1][:, piece.heads] = part
            sums.append(lse.new_full(query.shape[:3], -torch.inf))
            sums[-1][:, piece.heads] = lse
        total = torch.stack(sums)
        share = total.softmax(dim=0)[..., None]
        output = (torch.stack(outputs).to(share.dtype) * share).sum(dim=0)
        return output.to(call.value.dtype), total.logsumexp(dim=0)

    def _first(self, positions: torch.Tensor) -> torch.Tensor:
        """Position from which on keys may be seen in some branch, for queries at `positions`."""
        starts = [positions - positions % segment for segment, _ in self.branches]
        return torch.stack(starts).amin(dim=0)

    def _key_range(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> slice:
        """The smallest range of key indices that holds every key which these queries may see."""
        first = self._first(query_positions).amin(dim=1, keepdim=True)
        last = query_positions.amax(dim=1, keepdim=True)
        reachable = ((key_positions >= first) & (key_positions <= last)).any(dim=0).nonzero()
        return slice(int(reachable[0]), int(reachable[-1]) + 1)

    def _within_reach(self, call: Call) -> Call:
        """The call without keys that none of its queries may see; only a call on a cache can have such."""
        total = call.query.shape[2]
        if total == call.key.shape[2]:
            return call
        start = self._key_range(call.query_positions, call.key_positions).start
        return replace(
            call,
            key=call.key[:, :, start:],
            value=call.value[:, :, start:],
            key_positions=call.key_positions[:, start:],
            mask=None if call.mask is None else call.mask[..., start:],
        )

    def _pieces(self, call: Call) -> Iterator[Piece]:
        """Of a regular call: each branch's segments, once for each place that some heads keep."""
        heads, count = call.query.shape[1], call.key.shape[2]
        origin = int(call.key_positions[0, 0])
        end = origin + count
        single = call.query.shape[2] == 1
        for branch, (segment, dilation) in enumerate(self.branches):
            begin = (end - 1 if single else origin) // segment * segment
            for start in range(begin, end, segment):
                places = [(end - 1 - start) % dilation] if single else range(dilation)
                for place in places:
                    first = start + place
                    first += max(0, -((first - origin) // dilation)) * dilation
                    if place >= heads or first >= min(start + segment, end):
                        continue
                    keys = slice(first - origin, min(start + segment, end) - origin, dilation)
                    queries = slice(0, 1) if single else keys
                    which = slice(place, heads, dilation)
                    yield Piece(which, queries, keys, causal=not single, first=branch == 0)

    def _by_positions(self, call: Call) -> torch.Tensor:
        """Any call, by blocks of queries with an explicit bias."""
        rows, heads, total, _ = call.query.shape
        longest = min(max(segment for segment, _ in self.branches), call.key.shape[2])
        size = max(16, _LARGEST_BIAS // (rows * heads * longest))
        parts = []
        for start in range(0, total, size):
            queries = slice(start, min(start + size, total))
            keys = self._key_range(call.query_positions[:, queries], call.key_positions)
            met = self._met(heads, call.query_positions[:, queries], call.key_positions[:, keys])
            visible = call.visible(queries, keys) & (met > 0)
            query, key, value = call.query[:, :, queries], call.key[:, :, keys], call.value[:, :, keys]
            parts.append(softmax_attention(call, query, key, value, visible, bias=met.clamp(min=1).log()))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _met(self, heads: int, query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """In how many branches a query meets a key, [B, H, t, s], float32."""
        found: Any = 0
        places = torch.arange(heads, device=query_positions.device)[None, :, None]
        for segment, dilation in self.branches:
            together = (query_positions // segment)[:, :, None] == (key_positions // segment)[:, None, :]
            keeps = [
                (at % segment % dilation)[:, None, :] == places % dilation for at in (query_positions, key_positions)
            ]
            found = found + (together[:, None] & keeps[0][..., None] & keeps[1][:, :, None, :]).float()
        return found


register(LongNet)


def __getattr__(name: str) -> Any:
    return build_class(name, LongNet, globals())
