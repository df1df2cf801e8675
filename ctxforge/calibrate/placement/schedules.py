"""How a scale changes over the steps of a calibration."""

from __future__ import annotations

from typing import Literal

from ctxforge.errors import UsageError


def giraffe_scale_base(step: int, *, start: float = 8192, end: float = 128, fall: float = 8) -> float:
    """Giraffe's scale base of xPos at a step: `start`, less `fall` a step, down to `end`.

    (abacusai/Long-Context:python/train/finetune_context.py `AdjustXPOSCallback`, `main`.) The paper's run did not
    converge (2308.10882).

    Args:
        step: optimiser steps done so far, from 0.
        start, end, fall: as published.

    Raises:
        UsageError: a negative step or fall, or bases that are not 0 < end <= start.
    """
    if step < 0 or fall < 0 or not 0 < end <= start:
        raise UsageError(f"step {step}, bases {start:g} to {end:g}, fall {fall:g}", "give 0 < end <= start, fall >= 0")
    return max(end, start - fall * step)


def annealed_scale_base(
    step: int, steps: int, *, start: float, end: float, shape: Literal["linear", "reciprocal"] = "reciprocal"
) -> float:
    """The scale base B of xPos at a step: from `start`, large enough to be RoPE, to the target's own `end`.

    xPos weighs pairs at distance m by zeta^(m/B), so that B without bound is RoPE and 1/B is what the model feels.
    "reciprocal" lets 1/B grow evenly; "linear" lets B fall evenly, as Giraffe did, and so has most of the change in
    the last few steps.

    Args:
        step: optimiser steps done so far, 0 to `steps`; later ones stay at `end`.
        steps: steps that the fall takes, at least 1.
        start, end: the bases.
        shape: see above.

    Raises:
        UsageError: no steps, a negative step, or bases that are not 0 < end <= start.
    """
    if steps < 1 or step < 0 or not 0 < end <= start:
        raise UsageError(
            f"step {step} of {steps}, bases {start:g} to {end:g}", "give a step >= 0, steps >= 1, 0 < end <= start"
        )
    done = min(step / steps, 1.0)
    if shape == "linear":
        return start + done * (end - start)
    return 1 / ((1 - done) / start + done / end)
