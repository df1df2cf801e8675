"""Rotation whose table follows the length in steps, right with a cache: what dynamic NTK, YaRN and CLEX share.

A query at position p, the l-th token with l = p + 1, uses the table of scale s = max(1, ceil(steps l / L0) / steps),
and every key that it sees is rotated with the query's own table. The scale is a function of the query's position alone,
so one pass, chunks and token by token compute the same.

While decoding stays within one step, the table is one, and rotated keys are kept beside the cache; a new step rotates
them all anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_key_store import stored
from .ctxforge_runtime import RotarySystem

# Bounds the explicit mask of a block to this many rows.
_LARGEST_BLOCK = 2048


class SteppedRotation(RotarySystem):
    """A table a step: parameters `original_length` L0 in tokens and `steps`, steps of the scale for each L0."""

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.original_length = int(self.parameters["original_length"])
        self.steps = int(self.parameters["steps"])

    def table(self, frequencies: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The table at scale s = step / steps, and the factor on cos and sin that comes with it.

        Args:
            frequencies: the stock table, radians per token [d/2].
            step: steps * s, integers [B or 1, 1, 1].

        Returns:
            Radians per token [B or 1, 1, d/2], and a number or [B or 1, 1, 1].
        """
        raise NotImplementedError

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv], queries of one table at a time."""
        if not self.rotates(module):
            return _with_keys(call, call.query, call.key)
        step = self._step(call.query_positions)
        if step.shape[1] == 1 or bool((step == step[:, :1]).all()):
            return self._one_table(module, call, step[:, :1])
        return self._several_tables(module, call, step)

    def _one_table(self, module: nn.Module, call: Call, step: torch.Tensor) -> torch.Tensor:
        """Every query of a row has that row's step, [B, 1]: the keys come from the store."""
        turn = self._turn(module, step)

        def make(keys: slice) -> tuple[torch.Tensor]:
            return (turn(call.key[:, :, keys], call.key_positions[:, keys]),)

        (key,) = stored(self, module, call, make, label=tuple(step[:, 0].tolist()))
        return _with_keys(call, turn(call.query, call.query_positions), key)

    def _several_tables(self, module: nn.Module, call: Call, step: torch.Tensor) -> torch.Tensor:
        """Queries of several steps, [B, T]: keys are rotated once a step, and not kept."""
        before = call.key.shape[2] - step.shape[1]  # keys older than the first query
        output = call.value.new_zeros(*call.query.shape[:3], call.value.shape[3])
        for present in step.unique().tolist():
            wanted = step == present
            columns = wanted.any(dim=0).nonzero()
            first, last = int(columns[0]), int(columns[-1]) + 1
            turn = self._turn(module, step.new_full((1, 1), present))
            query = turn(call.query[:, :, first:last], call.query_positions[:, first:last])
            key = turn(call.key[:, :, : before + last], call.key_positions[:, : before + last])
            for start in range(first, last, _LARGEST_BLOCK):
                queries = slice(start, min(start + _LARGEST_BLOCK, last))
                keys = slice(0, before + queries.stop)
                part, mask = query[:, :, start - first : queries.stop - first], call.visible(queries, keys)
                block = softmax_attention(call, part, key[:, :, keys], call.value[:, :, keys], mask)
                output[:, :, queries] = torch.where(wanted[:, None, queries, None], block, output[:, :, queries])
        return output

    def _step(self, positions: torch.Tensor) -> torch.Tensor:
        """steps * s, an integer, for each position."""
        reached = -((positions + 1) * self.steps // -self.original_length)
        return reached.clamp(min=self.steps)

    def _turn(self, module: nn.Module, step: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """How states at positions are rotated at `step`, [B or 1, 1]; they keep their dtype."""
        frequencies, temperature = self.frequencies(module, step.device)
        table, factor = self.table(frequencies, step[..., None])
        amplitude = temperature * factor

        def turn(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            turned = rotate(states, positions, table, interleaved=self.interleaved, amplitude=amplitude)
            return turned.to(states.dtype)

        return turn


def _with_keys(call: Call, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Attention of all queries over all keys that they see, [B, H, T, Dv]."""
    total = query.shape[2]
    if call.mask is None and total in (1, key.shape[2]):
        return softmax_attention(call, query, key, call.value, None, causal=total > 1)
    everything = slice(None)
    return softmax_attention(call, query, key, call.value, call.visible(everything, everything))
