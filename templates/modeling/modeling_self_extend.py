"""Self-Extend (2401.01325): the true distance up to a window w, distances in groups of g tokens beyond it.

Rule 0, m - n < w: Q = m, K = n. Rule 1: Q = m // g + w - w // g, K = n // g. The window is a multiple of the group, so
w // g is exact; the published code divides otherwise in prefill than in decoding where it is not.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_remapping import RemappingSystem
from .ctxforge_runtime import build_class, register


class SelfExtend(RemappingSystem):
    """Self-Extend: parameters `group` g and `window` w in tokens."""

    name = "ctxforge_self_extend"
    copies = (0, 1)

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.group, self.window = int(self.parameters["group"]), int(self.parameters["window"])

    def rule(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """0 within the window, 1 beyond."""
        return (query - key >= self.window).long()

    def query_position(self, rule: int, positions: torch.Tensor) -> torch.Tensor:
        """m, or its group moved so that the first distance beyond the window follows on those within."""
        if rule == 0:
            return positions
        return positions // self.group + self.window - self.window // self.group

    def key_position(self, copy: int, positions: torch.Tensor) -> torch.Tensor:
        """n, or its group."""
        return positions if copy == 0 else positions // self.group


register(SelfExtend)


def __getattr__(name: str) -> Any:
    return build_class(name, SelfExtend, globals())
