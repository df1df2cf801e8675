"""YaRN whose scale follows the length (2309.00071), right with a cache.

A query at position p, the l-th token with l = p + 1, uses the table of scale s = max(1, ceil(steps l / L0) / steps):
pair i turns with f_i (1 - g_i (1 - 1/s)), and cos and sin are multiplied by 0.1 ln s + 1. All keys, unrotated in the
cache, are rotated with the query's own table. The scale is a function of the query's position alone, so one pass,
chunks and token by token compute the same; up to L0 it is the stock model.

The published code takes s = l / L0 of the whole forward pass for every query in it, and leaves cached keys as they
were rotated: one pass and cached decoding then differ. At the last position, when steps l / L0 is an integer, both
define the same table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .ctxforge_attention import Call, rotate, softmax_attention
from .ctxforge_runtime import RotarySystem, build_class, register

# Bounds the explicit mask of a block to this many rows.
_LARGEST_BLOCK = 2048


class DynamicYarn(RotarySystem):
    """Dynamic YaRN: parameters `original_length` L0, `steps`, and the ramp g, one weight a pair."""

    name = "ctxforge_dynamic_yarn"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.original_length = int(self.parameters["original_length"])
        self.steps = int(self.parameters["steps"])
        self.ramp: list[float] = [float(weight) for weight in self.parameters["ramp"]]

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv], queries of one scale at a time."""
        total, whole = call.query.shape[2], slice(0, call.key.shape[2])
        if not self.rotates(module):
            return self._plain(call)
        steps = self._step(call.query_positions)
        if total == 1:
            mask = None if call.mask is None else call.visible(slice(0, 1), whole)
            return self._with_table(module, call, slice(0, 1), whole, steps[..., None], mask)
        present = steps.unique().tolist()
        causal = call.mask is None and total == call.key.shape[2]
        if len(present) == 1 and causal:
            return self._with_table(module, call, slice(0, total), whole, steps[:1, :1, None], None, causal=True)
        output = call.value.new_zeros(*call.query.shape[:3], call.value.shape[3])
        for step in present:
            wanted = steps == step
            columns = wanted.any(dim=0).nonzero()
            first, last = int(columns[0]), int(columns[-1]) + 1
            for start in range(first, last, _LARGEST_BLOCK):
                queries = slice(start, min(start + _LARGEST_BLOCK, last))
                keys = slice(0, call.key.shape[2] - total + queries.stop)
                mask = call.visible(queries, keys)
                table = steps.new_full((1, 1, 1), step)
                block = self._with_table(module, call, queries, keys, table, mask)
                output[:, :, queries] = torch.where(wanted[:, None, queries, None], block, output[:, :, queries])
        return output

    def _plain(self, call: Call) -> torch.Tensor:
        total = call.query.shape[2]
        if call.mask is None and total in (1, call.key.shape[2]):
            return softmax_attention(call, call.query, call.key, call.value, None, causal=total > 1)
        everything = slice(None)
        return softmax_attention(call, call.query, call.key, call.value, call.visible(everything, everything))

    def _step(self, positions: torch.Tensor) -> torch.Tensor:
        """steps * s, an integer, for each position."""
        reached = -((positions + 1) * self.steps // -self.original_length)
        return reached.clamp(min=self.steps)

    def _with_table(
        self,
        module: nn.Module,
        call: Call,
        queries: slice,
        keys: slice,
        steps: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        causal: bool = False,
    ) -> torch.Tensor:
        """Attend with the tables of `steps`, [B or 1, 1, 1]."""
        frequencies, temperature = self.frequencies(module, call.query.device)
        scale = steps.to(torch.float32) / self.steps
        ramp = torch.tensor(self.ramp, device=frequencies.device)
        table = frequencies * (1 - ramp * (1 - 1 / scale))
        amplitude = temperature * (0.1 * scale.log() + 1)
        turned = []
        for states, positions in (
            (call.query[:, :, queries], call.query_positions[:, queries]),
            (call.key[:, :, keys], call.key_positions[:, keys]),
        ):
            turned.append(rotate(states, positions, table, interleaved=self.interleaved, amplitude=amplitude))
        return softmax_attention(call, turned[0], turned[1], call.value[:, :, keys], mask, causal=causal)


register(DynamicYarn)


def __getattr__(name: str) -> Any:
    return build_class(name, DynamicYarn, globals())
