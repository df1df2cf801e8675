"""The optimiser of a plan, with a learning rate for each kind of parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ctxforge.calibrate.memory.eight_bit import adamw_8bit
from ctxforge.calibrate.recipes import CalibrationPlan

_LOW_RANK = "low_rank"
_NO_DECAY = ("norm",)


def make_optimiser(plan: CalibrationPlan, groups: Mapping[str, list[torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """AdamW over the groups of `Trained.groups()`; norms are never decayed.

    Each group of the optimiser keeps its highest rate as `highest`.

    Args:
        plan: of the run.
        groups: trained parameters by "low_rank" or their role.

    Raises:
        UsageError, UnsupportedError: see `adamw_8bit`.
    """
    recipe = plan.recipe.optimiser
    found: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        rate = plan.low_rank_rate if name == _LOW_RANK else plan.whole_rate
        decay = 0.0 if name in _NO_DECAY else recipe.weight_decay
        found.append({"params": parameters, "lr": rate, "highest": rate, "weight_decay": decay})
    if recipe.kind == "adamw-8bit":
        return adamw_8bit(found, lr=plan.low_rank_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(found, lr=plan.low_rank_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its highest rate times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["highest"] * factor
