"""ReRoPE and Leaky ReRoPE (bojone/rerope): the true distance up to a window w; beyond, w, or w and a k-th of the rest.

Rule 0, m - n < w: Q = m, K = n. Rule 1 of ReRoPE: Q = w, K = 0, so that keys are used unrotated; of Leaky ReRoPE:
Q = w + (m - w) / k, K = n / k.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_remapping import RemappingSystem
from .ctxforge_runtime import build_class, register


class ReRoPE(RemappingSystem):
    """Both: parameters `window` w in tokens, and `factor` k, None for ReRoPE itself."""

    name = "ctxforge_rerope"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        factor = self.parameters.get("factor")
        self.window, self.factor = int(self.parameters["window"]), None if factor is None else float(factor)
        self.copies = (0, None if self.factor is None else 1)

    def rule(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """0 within the window, 1 beyond."""
        return (query - key >= self.window).long()

    def query_position(self, rule: int, positions: torch.Tensor) -> torch.Tensor:
        """m; beyond the window w, or the point from which keys at n / k are as far as they shall be."""
        if rule == 0:
            return positions
        if self.factor is None:
            return torch.full_like(positions, self.window)
        return self.window + (positions - self.window).double() / self.factor

    def key_position(self, copy: int, positions: torch.Tensor) -> torch.Tensor:
        """n, or n / k."""
        return positions if copy == 0 else positions.double() / self.factor


register(ReRoPE)


def __getattr__(name: str) -> Any:
    return build_class(name, ReRoPE, globals())
