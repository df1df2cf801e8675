"""FSDP2: parameters, gradients and optimiser states split over processes, gathered a decoder layer at a time.

Done with torch's own `fully_shard`: accelerate's `prepare` does the same on GPUs, but nothing on the CPU, and wants the
optimiser made before. A group may mix dtypes as long as all that is trained in it has one, which is float32 for every
recipe; masters of 16-bit weights (`adapters.masters`) are gathered in float32 and rounded after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters import Trained
from ctxforge.calibrate.memory.layers import decoder_layers
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.parallel.preparing import with_parameters
from ctxforge.errors import UnsupportedError


def shard(loss_model: LossModel, trained: Trained, mesh: Any, device: torch.device) -> Trained:
    """Split a model over a mesh in place: one group for each decoder layer, one for the rest.

    Args:
        loss_model: with a model that is whole, in every process the same.
        trained: what is trained in it.
        mesh: of one dimension.
        device: where this process's part goes; whole layers come there one after the other.

    Returns:
        `trained` with the parameters as they are now.

    Raises:
        UnsupportedError: trained parameters of several dtypes in one group.
    """
    from torch.distributed.fsdp import fully_shard

    kinds = {str(parameter.dtype) for _, parameter in trained.tensors()}
    if len(kinds) > 1:
        raise UnsupportedError(
            f"trained parameters of several dtypes ({', '.join(sorted(kinds))}) can't be sharded together",
            "train without sharding",
        )
    places = {id(parameter): name for name, parameter in loss_model.named_parameters()}
    names = {name: places[id(parameter)] for name, parameter in trained.tensors()}
    for layer in dict.fromkeys(decoder_layers(loss_model.model)):
        fully_shard(layer, mesh=mesh)
    fully_shard(loss_model, mesh=mesh)
    for buffer in loss_model.buffers():
        buffer.data = buffer.data.to(device)
    if device.type == "cpu":
        for group in groups(loss_model):
            group.set_force_sum_reduction_for_comms(True)  # gloo has no average
    return with_parameters(trained, {name: loss_model.get_parameter(place) for name, place in names.items()})


def groups(model: nn.Module) -> Iterator[Any]:
    """The sharded modules in a model."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            yield module


def release(model: nn.Module) -> None:
    """Forget gathered parameters: after numbers were written into the parts, they would be read on."""
    for group in groups(model):
        group.reshard()
