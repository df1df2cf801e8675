"""Where a model's parameters stand in its checkpoint: by transformers' own renamings, and proved on the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters.rounding import find_format
from ctxforge.checkpoint import Checkpoint, TensorInfo
from ctxforge.checkpoint.elements import decode
from ctxforge.checkpoint.files import open_regular, pread_exact, reading
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.errors import CheckpointError, UnsupportedError

_PROVED = 64 * 1024
"""Bytes at either end of a tensor that are compared with the model's numbers."""


@dataclass(frozen=True)
class Places:
    """Which tensors of the checkpoint hold each parameter.

    Attributes:
        tensors: by the parameter's name, the names in the checkpoint; several where a tied one is stored twice.
        converted: by the parameter's name, the tensors that transformers makes it of by something other than renaming.
    """

    tensors: Mapping[str, tuple[str, ...]]
    converted: Mapping[str, tuple[str, ...]]

    def of(self, parameter: str) -> tuple[str, ...]:
        """The checkpoint's tensors of one parameter.

        Raises:
            UnsupportedError: it is put together from several or rearranged ones.
            CheckpointError: the checkpoint doesn't hold it.
        """
        found = self.tensors.get(parameter, ())
        parts = self.converted.get(parameter, ())
        if parts:
            raise UnsupportedError(
                f"{parameter} is made of {len(parts)} tensors of the checkpoint that transformers rearranges "
                f"({ascii_name(parts[0])} and so on), into which a change cannot be merged",
                "leave its role out: attention alone is stored as it is computed with",
            )
        if not found:
            raise CheckpointError(
                f"the checkpoint holds no tensor for the parameter {parameter}",
                "check that the model was loaded from this folder, and that its weights are complete",
            )
        return found


def find_places(model: Any, checkpoint: Checkpoint) -> Places:
    """Map every parameter of a freshly loaded model to the tensors of its checkpoint.

    Args:
        model: as loaded, before anything is added to it.
        checkpoint: the folder that it was loaded from.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = getattr(model, "_weight_conversions", None)
    if transforms is None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    named = dict(model.named_parameters(remove_duplicate=False))
    state = dict.fromkeys(model.state_dict(keep_vars=True), True)
    tensors: dict[str, list[str]] = {}
    converted: dict[str, list[str]] = {}
    for stored in checkpoint.tensors:
        name, converter = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        into = tensors if converter is None else converted
        for alias in aliases[id(named[name])] if name in named else [name]:
            into.setdefault(alias, []).append(stored)
    return Places(_frozen(tensors), _frozen(converted))


def _frozen(found: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(some) for name, some in found.items()}


def prove_place(parameter: nn.Parameter, name: str, checkpoint: Checkpoint, tensor: str) -> None:
    """Check that a tensor of the checkpoint holds a parameter's numbers, exactly: shape, and both ends of the data.

    A parameter on the meta device has no numbers, so its shape alone is checked.

    Raises:
        UnsupportedError: a dtype that nothing can be merged into.
        CheckpointError: the shapes or the numbers differ.
    """
    info = checkpoint.tensors[tensor]
    find_format(info.dtype, ascii_name(tensor))
    if info.shape != tuple(parameter.shape):
        raise CheckpointError(
            f"{ascii_name(tensor)} has the shape {list(info.shape)}, the model's {name} {list(parameter.shape)}",
            "load the model from the folder that is calibrated",
        )
    if parameter.is_meta:
        return
    flat = parameter.detach().reshape(-1)
    item = info.nbytes // max(1, info.elements)
    count = min(_PROVED // item, info.elements)
    for start in {0, info.elements - count}:
        stored = torch.from_numpy(_numbers(checkpoint, info, start, count, item))
        held = flat[start : start + count].to("cpu", torch.float64)
        if not torch.equal(torch.nan_to_num(stored), torch.nan_to_num(held)):
            raise CheckpointError(
                f"the model's {name} does not hold what the checkpoint stores as {ascii_name(tensor)}",
                f"load the model in {info.dtype} or float32 from the folder itself, and train it only afterwards",
            )


def _numbers(checkpoint: Checkpoint, info: TensorInfo, start: int, count: int, item: int) -> Any:
    assert checkpoint.root is not None
    with open_regular(checkpoint.root / info.file, info.file) as file, reading(info.file):
        data = pread_exact(file, count * item, info.start + start * item, info.file)
    return decode(data, info.dtype).astype("f8")
