"""YaRN whose scale follows the length (2309.00071), right with a cache.

At scale s, which grows with the query's position as `ctxforge_stepped` says, pair i turns with f_i (1 - g_i (1 - 1/s)),
and cos and sin are multiplied by 0.1 ln s + 1. Up to L0 it is the stock model.

The published code takes s = l / L0 of the whole forward pass for every query in it, and leaves cached keys as they
were rotated: one pass and cached decoding then differ. At the last position, when steps l / L0 is an integer, both
define the same table.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_runtime import build_class, register
from .ctxforge_stepped import SteppedRotation


class DynamicYarn(SteppedRotation):
    """Dynamic YaRN: parameters `original_length` L0, `steps`, and the ramp g, one weight a pair."""

    name = "ctxforge_dynamic_yarn"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.ramp: list[float] = [float(weight) for weight in self.parameters["ramp"]]

    def table(self, frequencies: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """f (1 - g (1 - 1/s)) and 0.1 ln s + 1."""
        scale = step.to(torch.float32) / self.steps
        ramp = torch.tensor(self.ramp, device=frequencies.device)
        return frequencies * (1 - ramp * (1 - 1 / scale)), 0.1 * scale.log() + 1


register(DynamicYarn)


def __getattr__(name: str) -> Any:
    return build_class(name, DynamicYarn, globals())
