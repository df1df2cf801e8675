"""NTK-aware scaling whose base follows the length (2309.00071, section 3.3), right with a cache.

At scale s, which grows with the query's position as `ctxforge_stepped` says, the base is
b (factor s - (factor - 1))^(d/(d-2)): pair i turns with f_i (factor s - (factor - 1))^(-2i/(d-2)). Up to L0 it is the
stock model.

transformers' `dynamic` takes the length of the longest forward pass so far for every query in it, and leaves cached
keys as they were rotated: one pass and cached decoding then differ. At the last position, when steps l / L0 is an
integer, both define the same table.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_runtime import build_class, register
from .ctxforge_stepped import SteppedRotation


class DynamicNtk(SteppedRotation):
    """Dynamic NTK: parameters `original_length` L0, `steps`, and `factor`, the slope of the scale."""

    name = "ctxforge_dynamic_ntk"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.factor = float(self.parameters["factor"])

    def table(self, frequencies: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """f (factor s - (factor - 1))^(-2i/(d-2)) and 1."""
        pairs = frequencies.shape[0]
        growth = self.factor * (step.to(torch.float32) / self.steps) - (self.factor - 1)
        exponent = torch.arange(pairs, device=frequencies.device) / (pairs - 1)
        return frequencies * growth.pow(-exponent), 1.0


register(DynamicNtk)


def __getattr__(name: str) -> Any:
    return build_class(name, DynamicNtk, globals())
