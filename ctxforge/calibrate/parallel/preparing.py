"""A model with its loss, wrapped for its processes, and an optimiser over what is trained in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters import Trained
from ctxforge.calibrate.objectives.loss_model import LossModel

MakeOptimiser = Callable[[dict[str, list[nn.Parameter]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Prepared:
    """What a loop trains.

    Attributes:
        model: to be called: the wrapped module.
        inner: the model with its loss inside.
        optimiser: over the trained parameters as they are after wrapping.
        trained: what is trained, as it is after wrapping.
    """

    model: Any
    inner: LossModel
    optimiser: torch.optim.Optimizer
    trained: Trained


def with_parameters(trained: Trained, found: Mapping[str, nn.Parameter]) -> Trained:
    """`trained` with other parameters under the same names (those of `Trained.tensors`)."""
    return replace(
        trained,
        low_rank=tuple(
            replace(low, inner=found[f"{low.entry.parameter}.lora_A"], outer=found[f"{low.entry.parameter}.lora_B"])
            for low in trained.low_rank
        ),
        whole=tuple(replace(one, parameter=found[one.entry.parameter]) for one in trained.whole),
    )
