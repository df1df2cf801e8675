"""Whole tensors trained in float32 while the model computes in its own dtype.

A parameter that isn't float32 is replaced by a float32 master; the module reads it rounded to its dtype (nearest even),
so that forward passes see exactly what the merged checkpoint will hold, and gradients and the optimiser's steps, which
a 16-bit weight would swallow, stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


class _Rounded(nn.Module):
    """The master as the module reads it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, master: torch.Tensor) -> torch.Tensor:
        """The master in the module's dtype; the gradient comes back in float32."""
        return master.to(self.dtype)


def make_trainable(model: Any, parameter: nn.Parameter) -> nn.Parameter:
    """Make a parameter trainable in float32, wherever it is used; gives what the optimiser gets.

    Args:
        model: every module of it that shares the parameter (a tied head) reads the same master.
        parameter: one of its parameters.
    """
    if parameter.dtype == torch.float32:
        parameter.requires_grad_(True)
        return parameter
    master = nn.Parameter(parameter.detach().float())
    for module, name in list(_owners(model, parameter)):
        parametrize.register_parametrization(module, name, _Rounded(parameter.dtype), unsafe=True)
        held: Any = module.parametrizations[name]  # type: ignore[index]
        held.original = master
    return master


def _owners(model: Any, parameter: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for name, one in module.named_parameters(recurse=False):
            if one is parameter:
                yield module, name
