"""Dual Chunk Attention (2402.17463): positions start anew in each chunk, and no distance exceeds c.

With c the longest distance, l the local window, chunks of c - l tokens and i = m mod (c - l), keys stand at
n mod (c - l), and a query at

    i                  for keys of its own chunk (rule 0),
    min(i + c - l, c)  for keys of the chunk before (rule 1): the true distance for the l tokens before a chunk's start,
    c                  for keys of older chunks (rule 2).

The published cache takes one new token at a time; positions here are each row's own, so chunks of any size are right.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_remapping import RemappingSystem
from .ctxforge_runtime import build_class, register


class DualChunk(RemappingSystem):
    """Dual Chunk Attention: parameters `chunk` c and `local` l in tokens."""

    name = "ctxforge_dual_chunk"
    copies = (0, 0, 0)

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.longest = int(self.parameters["chunk"])
        self.length = self.longest - int(self.parameters["local"])

    def rule(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """How many chunks the key is behind, 2 for two and more."""
        return (query // self.length - key // self.length).clamp(0, 2)

    def query_position(self, rule: int, positions: torch.Tensor) -> torch.Tensor:
        """Where the query stands, seen from keys of its own chunk, the one before, or an older one."""
        if rule == 2:
            return torch.full_like(positions, self.longest)
        return (positions % self.length + rule * self.length).clamp(max=self.longest)

    def key_position(self, copy: int, positions: torch.Tensor) -> torch.Tensor:
        """Where the key stands in its chunk."""
        del copy
        return positions % self.length


register(DualChunk)


def __getattr__(name: str) -> Any:
    return build_class(name, DualChunk, globals())
