"""Adapter and optimiser out of their processes and back, by the names of the trained tensors.

By name and whole, so that a state doesn't depend on how many processes wrote it, nor on the order of an optimiser's
groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters import Adapter, Trained, restore_adapter
from ctxforge.calibrate.parallel.preparing import Prepared, with_parameters
from ctxforge.errors import CheckpointError


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers on the CPU, not shared with it; of a sharded one all of them, in every process."""
    full = value.detach()
    if hasattr(full, "full_tensor"):
        full = full.full_tensor()
    return full.to("cpu", copy=True)


def gathered(trained: Trained, *, keep: bool) -> Trained | None:
    """What is trained with whole parameters on the CPU, gathered by all processes and kept where asked."""
    found = {}
    for name, parameter in trained.tensors():
        full = whole_tensor(parameter)
        if keep:
            found[name] = nn.Parameter(full, requires_grad=False)
    return with_parameters(trained, found) if keep else None


def restore(folder: str | Path, trained: Trained) -> Adapter:
    """`restore_adapter`, into sharded parameters too: every process reads the files and takes its part."""
    if not any(_is_sharded(parameter) for _, parameter in trained.tensors()):
        return restore_adapter(folder, trained)
    whole = {name: nn.Parameter(torch.empty(p.shape), requires_grad=False) for name, p in trained.tensors()}
    adapter = restore_adapter(folder, with_parameters(trained, whole))
    with torch.no_grad():
        for name, parameter in trained.tensors():
            parameter.copy_(as_sharded(whole[name].detach(), parameter))
    return adapter


def as_sharded(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same in every process, placed and cut as a parameter is."""
    if not _is_sharded(like):
        return full.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(
        full.to(sharded.to_local().device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )


def optimiser_state(prepared: Prepared, *, keep: bool) -> dict[str, Any]:
    """What an optimiser remembers of each trained tensor, whole and on the CPU, under that tensor's name.

    Args:
        prepared: a model and its optimiser.
        keep: whether this process keeps what all gather; where not, the dictionary is empty.

    Returns:
        name: {"step": ..., "exp_avg": ..., ...} as the optimiser calls them; tensors it hasn't stepped are left out.
    """
    found: dict[str, Any] = {}
    for name, parameter in prepared.trained.tensors():
        if parameter not in prepared.optimiser.state:
            continue
        kept: dict[str, Any] = {}
        for key, value in prepared.optimiser.state[parameter].items():
            kept[key] = whole_tensor(value) if isinstance(value, torch.Tensor) else value
        if keep:
            found[name] = kept
    return found


def load_optimiser_state(prepared: Prepared, state: Mapping[str, Any]) -> None:
    """Give an optimiser what `optimiser_state` took, whatever the number of processes then and now.

    Args:
        prepared: a model and its optimiser.
        state: the same in every process.

    Raises:
        CheckpointError: the state is of tensors that aren't trained here, or has other shapes.
    """
    parameters = dict(prepared.trained.tensors())
    odd = sorted(set(state) - set(parameters))
    if odd:
        raise CheckpointError(
            f"the optimiser's state is of other tensors ({odd[0]})", "resume with the recipe that the run began with"
        )
    document = prepared.optimiser.state_dict()
    numbers = {
        id(parameter): number
        for group, packed in zip(prepared.optimiser.param_groups, document["param_groups"], strict=True)
        for parameter, number in zip(group["params"], packed["params"], strict=True)
    }
    document["state"] = {
        numbers[id(parameters[name])]: {key: _placed(name, value, parameters[name]) for key, value in kept.items()}
        for name, kept in state.items()
    }
    prepared.optimiser.load_state_dict(document)


def _placed(name: str, value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    if _is_sharded(parameter):
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"the optimiser's state of {name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}",
                "resume with the optimiser that the run began with",
            )
        return as_sharded(value, parameter)
    return value.clone()


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "placements")
