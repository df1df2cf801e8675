"""A training step without data: the model's own code on torch's meta device, where tensors have sizes and no memory.

What a layer keeps and what its backward needs follow from the code that will run, adapters and all, so nothing about
an architecture is written down here. Fused attention kernels do not exist on the meta device; a stand-in keeps what
they keep: query, key, value, output and one float32 a row and head. An attention that writes its scores out (Gemma 2's,
for its soft cap) is rehearsed as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ctxforge.calibrate.memory.checkpointing import Checkpointing
from ctxforge.calibrate.memory.grouped import GroupedProducts
from ctxforge.calibrate.memory.layers import decoder_layers
from ctxforge.calibrate.memory.meter import MemoryMeter
from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs
from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.calibrate.objectives.loss_model import LossModel

# Not among transformers' mask functions: an attention under such a name is given no mask to look into.
ATTENTION_NAME = "ctxforge_rehearsal"


@dataclass(frozen=True)
class Peaks:
    """Most bytes alive at once in the parts of a step, weights and their gradients left out.

    Attributes:
        forward: of the decoder.
        loss: of the head and the loss, with what the decoder kept.
        backward: of the decoder.
    """

    forward: int
    loss: int
    backward: int


@dataclass(frozen=True)
class Kind:
    """Layers that take the same memory.

    Attributes:
        index: number of the first of them.
        count: how many there are.
    """

    index: int
    count: int


@torch.library.custom_op(
    "ctxforge::rehearsed_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)",
)
def _fused(*_inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("an attention without values was asked for values")


@_fused.register_fake
def _sizes(query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, T, H, d_v] and a float32 [B, H, T] of query [B, H, T, d] and value [B, H', S, d_v]."""
    output = query.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[-1]))
    return output, query.new_empty(query.shape[:3], dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, *_upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


_fused.register_autograd(_backward, setup_context=_keep)


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_args: Any, **_kwargs: Any
) -> tuple[torch.Tensor, None]:
    """The stand-in, as transformers' `AttentionInterface` wants it. On a CPU shared heads are copied for each query."""
    each = query.shape[1] // key.shape[1]
    if each > 1 and getattr(module, "_ctxforge_copies_heads", False):
        key, value = (part.repeat_interleave(each, dim=1) for part in (key, value))
    output, _rows = _fused(query, key, value)
    return output, None


def writes_scores_out(model: Any) -> bool:
    """Whether a model's attention makes matrices [B, H, T, S], as transformers' "eager" does."""
    return bool(causal_lm(model).config._attn_implementation == "eager")


def on_meta(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of a model on the meta device: no memory, the same code, adapters and choice of what is trained.

    Args:
        model: on any device.
        dtype: of all floating-point weights; None for their own.
    """
    memo: dict[int, Any] = {}
    for part in [*model.parameters(), *model.buffers()]:
        changed = dtype if dtype is not None and part.is_floating_point() else part.dtype
        moved = torch.empty_like(part.detach(), device="meta", dtype=changed)
        trained = isinstance(part, torch.nn.Parameter)
        memo[id(part)] = torch.nn.Parameter(moved, requires_grad=part.requires_grad) if trained else moved
    found = copy.deepcopy(model, memo)
    for module in found.modules():
        # Wrappers and hooks work on the model that they were made for.
        module.__dict__.pop("forward", None)
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return found


def kinds(model: Any) -> list[Kind]:
    """The model's layers by what their parameters look like, each kind once."""
    found: dict[Any, list[int]] = {}
    for number, layer in enumerate(decoder_layers(model)):
        look = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
        found.setdefault((type(layer).__name__, look), []).append(number)
    return [Kind(numbers[0], len(numbers)) for numbers in found.values()]


def rehearse(
    meta: Any,
    layers: list[int],
    shape: tuple[int, int],
    *,
    checkpoint: bool,
    keep_attention: bool = False,
    tile_tokens: int | None = None,
    slice_rows: int | None = None,
    tiled: Sequence[tuple[int, str]] = (),
    copies_heads: bool = False,
) -> Peaks:
    """One step of a model that has only the layers named, for a batch of `shape` [B, L].

    Args:
        meta: of `on_meta`.
        layers: numbers of its layers, one as often as it is to be there.
        shape: batch and length.
        checkpoint, keep_attention: see `Checkpointing`.
        tile_tokens: see `TiledMLPs`; None for no tiles.
        slice_rows: see `LossModel`.
        tiled: which MLPs are tiled: number of the layer and name in it.
        copies_heads: whether attention copies shared heads, as on a CPU.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attend)
    inner = causal_lm(meta)
    every = decoder_layers(meta)
    owner, name = next((o, n) for o in inner.modules() for n, part in o.named_children() if part is every)
    meter = MemoryMeter()
    with ExitStack() as stack:
        stack.callback(setattr, owner, name, every)
        more: dict[str, Any] = {}
        if writes_scores_out(meta):
            # Its own code runs as it is, and adds a mask to the scores.
            dtype = inner.get_input_embeddings().weight.dtype
            more["attention_mask"] = torch.empty((shape[0], 1, shape[1], shape[1]), device="meta", dtype=dtype)
        else:
            for config in {id(m.config): m.config for m in inner.modules() if hasattr(m, "config")}.values():
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = ATTENTION_NAME
        # Copies, because gradients of a layer that is there twice would wait for one another.
        chosen = torch.nn.ModuleList([copy.deepcopy(every[number]) for number in layers])
        setattr(owner, name, chosen)
        if checkpoint:
            stack.enter_context(Checkpointing(meta, keep_attention=keep_attention, layers=chosen))
        parts = [chosen[at].get_submodule(part) for at, n in enumerate(layers) for number, part in tiled if n == number]
        if tile_tokens is not None and parts:
            stack.enter_context(TiledMLPs(meta, tile_tokens, parts))
        for module in inner.modules():
            module.__dict__["_ctxforge_copies_heads"] = copies_heads
            _fix_rotation(module)
        meta.train()
        loss_model = LossModel(meta, slice_rows)
        ids = torch.zeros(shape, dtype=torch.long, device="meta")
        where = torch.zeros((1, shape[1]), dtype=torch.long, device="meta")
        for parameter in meta.parameters():
            # As in a step that is not the first: gradients are there, and new ones are added to them.
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        marks: list[int] = []

        def end_of_decoder(*_given: Any) -> None:
            # Heads that run as the model's own code pass through the decoder again, with the states that it gave.
            if not marks:
                marks.append(meter.restart())

        stack.callback(inner.get_decoder().register_forward_hook(end_of_decoder).remove)
        with GroupedProducts(), meter:
            loss = loss_model(ids, ids, 1.0, position_ids=where, **more).loss
            marks.append(meter.restart())
            loss.backward()
            marks.append(meter.peak)
    return Peaks(*marks)


def _fix_rotation(module: torch.nn.Module) -> None:
    """Keep a rotary module from asking how long the input is, which needs values; its tables are as large anyway."""
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, str):
        module.rope_type = "default"  # type: ignore[assignment]
    elif isinstance(kind, dict):
        module.rope_type = dict.fromkeys(kind, "default")  # type: ignore[assignment]
