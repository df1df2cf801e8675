"""What changes from step to step: learning rates, and xPos's scale base."""

from __future__ import annotations

import math

from ctxforge.calibrate.placement import annealed_scale_base, giraffe_scale_base
from ctxforge.calibrate.recipes import CalibrationPlan

_FALL = 0.1
_PLAIN = 64.0


def rate_factor(plan: CalibrationPlan, step: int) -> float:
    """The learning rate of a step as a share of the highest: linear growth, then the recipe's shape.

    Args:
        plan: of the run.
        step: from 0 to steps - 1.
    """
    optimiser, steps = plan.recipe.optimiser, plan.recipe.steps
    warmup = min(optimiser.warmup, steps // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if optimiser.schedule == "cosine":
        return optimiser.final + (1 - optimiser.final) * (1 + math.cos(math.pi * done)) / 2
    if optimiser.schedule == "constant":
        done = max(0.0, (done - 1 + _FALL) / _FALL)
    return 1 - (1 - optimiser.final) * done


def scale_base(plan: CalibrationPlan, step: int, target: float) -> float | None:
    """xPos's scale base at a step; None where the recipe leaves it alone.

    The annealed one starts at 64 times the larger of base and target length, where a pair across the whole target
    loses at most 2 % of its weight: RoPE, as good as.

    Args:
        plan: of the run.
        step: steps done.
        target: the checkpoint's own scale base.
    """
    kind = plan.recipe.scale_base
    if kind == "fixed":
        return None
    if kind == "giraffe":
        return max(target, giraffe_scale_base(step, start=max(8192.0, target), end=min(128.0, target)))
    fall = max(1, round(plan.recipe.steps * plan.recipe.anneal_share))
    return annealed_scale_base(step, fall, start=_PLAIN * max(target, plan.target_length), end=target)
