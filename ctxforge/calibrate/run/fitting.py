"""Choosing how a step is made to fit, from an estimate, before the first one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from ctxforge.calibrate.memory.estimate import Estimator, MemoryEstimate, StepOptions, refuse_too_large
from ctxforge.calibrate.memory.tiled_mlp import default_tile
from ctxforge.calibrate.memory.ways import ways_to_fit
from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.calibrate.recipes import CalibrationPlan, MemoryRecipe
from ctxforge.verification.processes import launched

_ON_GPU, _ON_CPU = 16384, 4096
_SHARE = 0.9


def tokens_at_once(recipe: MemoryRecipe, device: torch.device) -> int:
    """Tokens of a forward pass: what the recipe says, or what keeps the device busy."""
    return recipe.tokens_at_once or (_ON_GPU if device.type == "cuda" else _ON_CPU)


def memory_of(device: torch.device) -> int | None:
    """Bytes that a run may take on a device beside what is taken already; None where it can't be known."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    try:
        import psutil  # type: ignore[import-untyped]  # a dependency of accelerate

        # What is free is for all the processes that were launched here.
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or launched())
        return int(psutil.virtual_memory().available // here + psutil.Process().memory_info().rss)
    except (ImportError, OSError, ValueError):
        return None


def fit(
    model: Any,
    plan: CalibrationPlan,
    device: torch.device,
    *,
    memory: int | None,
    shards: int = 1,
    context: int = 1,
    slice_rows: int | None = None,
) -> tuple[StepOptions, MemoryEstimate]:
    """The cheapest way to run the plan's steps that fits the device, and what it is estimated to take.

    In this order, each added to those before: nothing, checkpointed layers, tiled MLPs, inputs kept in the processor's
    memory. What the recipe turns on or off stays so.

    Args:
        model: with what is trained in it.
        plan: of the run.
        device: where it runs.
        memory: bytes that the run may take there, the same on all processes; None where that can't be known.
        shards: processes that share parameters.
        context: processes that share a sequence.
        slice_rows: rows of a slice of the loss.

    Raises:
        ResourceError: nothing fits; it says what would.
    """
    recipe, gpu = plan.recipe.memory, device.type == "cuda"
    length = -(-plan.longest // context)
    width = int(causal_lm(model).get_input_embeddings().weight.shape[1])
    batch = max(1, tokens_at_once(recipe, device) // plan.longest)
    tile = default_tile(width)
    base = StepOptions(
        batch=batch,
        checkpoint=recipe.checkpointing == "on",
        tile_tokens=tile if recipe.tiled_mlp == "on" else None,
        offload=recipe.offload == "on" and gpu,
        slice_rows=slice_rows,
        optimiser=plan.recipe.optimiser.kind,
        shards=shards,
        gpu=gpu,
    )
    steps = [base]
    if recipe.checkpointing == "auto":
        steps.append(replace(steps[-1], checkpoint=True))
    if recipe.tiled_mlp == "auto":
        steps.append(replace(steps[-1], tile_tokens=tile))
    if recipe.offload == "auto" and gpu:
        steps.append(replace(steps[-1], offload=True))
    estimator = Estimator(model)
    if memory is None:
        return steps[0], estimator.estimate(length, steps[0])
    room = int(_SHARE * memory)
    for options in steps:
        found = estimator.estimate(length, options)
        if found.total <= room:
            return options, found
    refuse_too_large(found, room, lambda: [way.line for way in ways_to_fit(estimator, length, options, room)])
    return options, found
