"""CLEX (2310.16450), right with a cache: learned frequencies at every whole scale, each query those of its position.

The scale is t = max(1, ceil(l / L0)) for the l-th token, as `ctxforge_stepped` says with one step for each L0. The
tables at t = 1, 2, 3, ... stand in config.json, integrated from the trained equation when the checkpoint was made; past
the last of them it stays in force. Up to L0 it is the stock model.

The published code takes t of the whole forward pass for every query in it; its cache holds unrotated keys, as ours
does. At the last position both define the same table.
"""

from __future__ import annotations

from typing import Any

import torch

from .ctxforge_runtime import build_class, register
from .ctxforge_stepped import SteppedRotation


class Clex(SteppedRotation):
    """CLEX: parameters `original_length` L0, `steps` (1), and `tables`, d/2 frequencies for each t."""

    name = "ctxforge_clex"

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.tables: list[float] = [float(frequency) for frequency in self.parameters["tables"]]

    def table(self, frequencies: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The table of t = step, the stock one for t = 1, and 1."""
        tables = torch.tensor(self.tables, device=frequencies.device).view(-1, frequencies.shape[0])
        found = tables[step[..., 0].clamp(max=tables.shape[0]) - 1]
        return torch.where(step == 1, frequencies, found), 1.0


register(Clex)


def __getattr__(name: str) -> Any:
    return build_class(name, Clex, globals())
