"""Attention that tells the rotation another distance than the true one, by one of a few rules for each pair.

A rule is a function of the query's position and one of the key's: under rule r the score of a query at m and a key at n
is q_m^T R(Q_r(m) - K_r(n)) k_n. Each rule is a set of scores of its own (ctxforge_score_sets); a pair counts in one of
them. Keys rotated to K_r(n) are kept beside the cache (ctxforge_key_store), so a decoded token rotates one key.

Queries go in blocks. Keys that all of a block's queries see under the same rule, nearly all of them, need no mask; what
is left is as wide as the block. No [T, S] mask or score is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_key_store import stored
from .ctxforge_runtime import RotarySystem
from .ctxforge_score_sets import ScoreSet, attend, needs_scores

# Scores in memory at once, where they must be.
_SCORES = 2**25
# More ranges than this cost more than the masks that they save.
_RANGES = 12
_HIDDEN, _SEEN_BY_SOME, _SEEN_BY_ALL = range(3)


@dataclass
class Range:
    """Keys that some queries of a block see under a rule; `masked` unless all see all of them so."""

    rule: int
    start: int
    stop: int
    masked: bool


class RemappingSystem(RotarySystem):
    """A system whose distances follow one of a few rules.

    A subclass gives `copies`, `rule`, `query_position` and `key_position`.

    Attributes:
        copies: for each rule the number of the rotated keys that it uses; None for unrotated keys, K_r = 0.
        block: queries that are answered together.
    """

    copies: tuple[int | None, ...]
    block = 512

    def rule(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Which rule holds between these positions, broadcast; it must not fall as the query's position rises."""
        raise NotImplementedError

    def query_position(self, rule: int, positions: torch.Tensor) -> torch.Tensor:
        """Q_r of these positions."""
        raise NotImplementedError

    def key_position(self, copy: int, positions: torch.Tensor) -> torch.Tensor:
        """K_r of these positions, for the rules that use this copy."""
        raise NotImplementedError

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv], one block of queries at a time."""
        if not self.rotates(module):
            return _plain(call)
        keys = self._rotated_keys(module, call)
        total, size = call.query.shape[2], self.block
        if needs_scores(call):
            size = max(1, min(size, _SCORES // (call.query.shape[0] * call.query.shape[1] * call.key.shape[2])))
        blocks = [
            self._block(module, call, keys, slice(start, min(start + size, total))) for start in range(0, total, size)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)

    def _rotated_keys(self, module: nn.Module, call: Call) -> tuple[torch.Tensor, ...]:
        """The copies of all keys, and the unrotated keys."""
        frequencies, temperature = self.frequencies(module, call.key.device)
        numbers = sorted({copy for copy in self.copies if copy is not None})

        def make(keys: slice) -> tuple[torch.Tensor, ...]:
            states, positions = call.key[:, :, keys], call.key_positions[:, keys]
            made = []
            for copy in numbers:
                turned = self.key_position(copy, positions)
                made.append(self._turn(states, turned, frequencies, temperature).to(states.dtype))
            return tuple(made)

        return (*stored(self, module, call, make), call.key)

    def _turn(self, states: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor, amplitude: float) -> Any:
        return rotate(states, positions, frequencies, interleaved=self.interleaved, amplitude=amplitude)

    def _block(self, module: nn.Module, call: Call, keys: tuple[torch.Tensor, ...], queries: slice) -> torch.Tensor:
        frequencies, temperature = self.frequencies(module, call.key.device)
        positions = call.query_positions[:, queries]
        turned: dict[int, torch.Tensor] = {}
        sets = []
        for found in self._ranges(call, queries):
            copy, some = self.copies[found.rule], slice(found.start, found.stop)
            if found.rule not in turned:
                amplitude = temperature if copy is not None else temperature**2
                at = self.query_position(found.rule, positions)
                rotated = self._turn(call.query[:, :, queries], at, frequencies, amplitude)
                turned[found.rule] = rotated.to(call.value.dtype)
            mask = None
            if found.masked:
                pairs = self.rule(positions[:, :, None], call.key_positions[:, None, some])
                mask = (pairs == found.rule)[:, None] & call.visible(queries, some)
            key = keys[-1 if copy is None else copy][:, :, some].to(call.value.dtype)
            sets.append(ScoreSet(turned[found.rule], key, call.value[:, :, some], mask))
        return attend(call, sets)

    def _ranges(self, call: Call, queries: slice) -> list[Range]:
        """Which keys these queries see under which rule."""
        total, count = call.key.shape[2], call.query.shape[2]
        end = total if call.mask is not None else total - count + queries.stop
        positions, keys = call.query_positions[:, queries], call.key_positions[:, :end]
        lowest = highest = self.rule(positions.amin(dim=1, keepdim=True), keys)
        if positions.shape[1] > 1:
            highest = self.rule(positions.amax(dim=1, keepdim=True), keys)
        if keys.shape[0] > 1:
            lowest, highest = lowest.amin(dim=0, keepdim=True), highest.amax(dim=0, keepdim=True)
        rules = len(self.copies)
        codes = (lowest[0] * rules + highest[0]) * 3 + self._seen(call, queries, end)
        different, lengths = codes.unique_consecutive(return_counts=True)
        found: list[Range] = []
        start = 0
        for code, length in zip(different.tolist(), lengths.tolist(), strict=True):
            seen, (low, high) = code % 3, divmod(code // 3, rules)
            if seen != _HIDDEN:
                masked = low != high or seen == _SEEN_BY_SOME
                found += [Range(rule, start, start + length, masked) for rule in range(low, high + 1)]
            start += length
        return _joined(found) if found else [Range(0, 0, end, masked=True)]

    def _seen(self, call: Call, queries: slice, end: int) -> torch.Tensor | int:
        """For each key up to `end` whether none, some or all of the queries see it."""
        if call.mask is not None:
            seen = call.mask[:, :, queries, :end].flatten(0, 2)
            return seen.any(dim=0).long() + seen.all(dim=0)
        first = call.key.shape[2] - call.query.shape[2] + queries.start
        if first + 1 == end:
            return _SEEN_BY_ALL
        return _SEEN_BY_ALL - (torch.arange(end, device=call.key.device) > first).long()


def _joined(found: list[Range]) -> list[Range]:
    """Neighbouring masked ranges of a rule as one; if too many are left, one a rule."""
    joined: dict[int, list[Range]] = {}
    for one in found:
        before = joined.setdefault(one.rule, [])
        if before and before[-1].stop == one.start and before[-1].masked and one.masked:
            before[-1].stop = one.stop
        else:
            before.append(one)
    if sum(len(ranges) for ranges in joined.values()) > _RANGES:
        return [Range(rule, ranges[0].start, ranges[-1].stop, masked=True) for rule, ranges in joined.items()]
    return [one for ranges in joined.values() for one in ranges]


def _plain(call: Call) -> torch.Tensor:
    """Attention without rotation."""
    total, everything = call.query.shape[2], slice(None)
    if call.mask is None and total in (1, call.key.shape[2]):
        return softmax_attention(call, call.query, call.key, call.value, None, causal=total > 1)
    return softmax_attention(call, call.query, call.key, call.value, call.visible(everything, everything))
