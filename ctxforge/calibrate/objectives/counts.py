"""What a loss is divided by, so that batches cut into micro-batches and over processes give one batch's gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ctxforge.calibrate.objectives.cross_entropy import IGNORE


def counted_tokens(targets: torch.Tensor) -> int:
    """Targets that count, in a batch of any shape."""
    return int((targets != IGNORE).sum())


def denominator(
    targets: Iterable[torch.Tensor], *, group: Any = None, averaged: bool = True, device: Any = None
) -> float:
    """The number to divide the loss of every micro-batch of one optimiser step by, on every process.

    Each micro-batch's sum divided by the tokens of the whole step, and the gradients added, is the gradient of the mean
    over all tokens of the step, however they were cut. The mean of micro-batches' means is not.

    Where gradients are averaged over processes and not added (DDP, FSDP2), the number is smaller by the processes'
    count, so that the average of gradients is the sum. `Accelerator.backward` divides by its
    `gradient_accumulation_steps` once more: leave that at 1.

    Args:
        targets: of this process's micro-batches of the step.
        group: of torch.distributed; None for the default one, or for a single process where none was started.
        averaged: whether gradients are averaged over the group.
        device: where the group adds numbers; None for the CPU.

    Returns:
        The step's tokens, or 1 for a step without any, divided by the processes where gradients are averaged.
    """
    total = torch.tensor(float(sum(counted_tokens(part) for part in targets)), dtype=torch.float64, device=device)
    processes = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total, group=group)
        processes = torch.distributed.get_world_size(group)
    return max(1.0, float(total)) / (processes if averaged else 1)
