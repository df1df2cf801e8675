"""STRING (2410.18745): the far part of the context, moved nearer, so that rarely trained distances are never used.

Rule 0, m - n < S: Q = m. Rule 1: Q = m - S + W. K = n for both: a key S tokens back counts as W tokens back, and the
largest distance is S - W below the true one.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_remapping import RemappingSystem
from .ctxforge_runtime import build_class, register


class StringShift(RemappingSystem):
    """STRING: parameters `shift` S and `window` W in tokens."""

    name = "ctxforge_string"
    copies = (0, 0)

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.shift, self.window = int(self.parameters["shift"]), int(self.parameters["window"])

    def rule(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """0 within the shift, 1 beyond."""
        return (query - key >= self.shift).long()

    def query_position(self, rule: int, positions: torch.Tensor) -> torch.Tensor:
        """m, or m moved nearer."""
        return positions - rule * (self.shift - self.window)

    def key_position(self, copy: int, positions: torch.Tensor) -> torch.Tensor:
        """n."""
        del copy
        return positions


register(StringShift)


def __getattr__(name: str) -> Any:
    return build_class(name, StringShift, globals())
