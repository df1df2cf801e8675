"""Activation checkpointing: of each decoder layer only the input is kept, the rest is computed again in the backward.

transformers' own (`modeling_layers.py`, `GradientCheckpointingLayer`) takes caches away from a layer, because the
second run would write to them again. Here the second run gets the cache as it was before the first, so memories that
live in caches can be trained. Arguments other than the hidden states (positions, masks, rotary tables) are shared by
all layers and are held as they are.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ctxforge.calibrate.memory.layers import decoder_layers
from ctxforge.calibrate.memory.offload import Offload
from ctxforge.calibrate.memory.trimming import HeapTrimmer
from ctxforge.errors import UnsupportedError, UsageError


class Checkpointing:
    """Checkpoints the decoder layers of a model until `remove` is called; also a context manager.

    Recomputation is exact: the state of the random generators is that of the first run. Modules' hooks (FSDP2's)
    stay outside, because a layer's `forward` is replaced and not its `__call__`.

    Args:
        model: a causal LM of transformers, with or without adapters.
        keep_attention: keep the outputs of fused attention kernels, which saves one attention forward a layer and
            costs one more tensor of the hidden size; an attention with dropout is computed again nevertheless.
        offload: where the kept inputs go; None to leave them on their device.
        layers: which modules; None for the model's decoder layers.

    Raises:
        UsageError: the model checkpoints itself already.
        UnsupportedError: its layers can't be found.
    """

    def __init__(
        self,
        model: Any,
        *,
        keep_attention: bool = False,
        offload: Offload | None = None,
        layers: Iterable[torch.nn.Module] | None = None,
    ) -> None:
        self._layers = list(dict.fromkeys(decoder_layers(model) if layers is None else layers))
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise UsageError(
                "the model checkpoints its layers by itself already", "turn its own checkpointing off first"
            )
        trimmer = HeapTrimmer()
        for layer in self._layers:
            layer.forward = _checkpointed(layer.forward, keep_attention, offload, trimmer)

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
        self._layers = []

    def __enter__(self) -> Checkpointing:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()


def _checkpointed(
    inner: Callable[..., Any], keep_attention: bool, offload: Offload | None, trimmer: HeapTrimmer
) -> Callable[..., Any]:
    """`inner`, a layer's forward, checkpointed whenever a gradient is wanted."""
    extra: dict[str, Any] = {}
    if keep_attention:
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        by_name = not args
        # `run` lives until the backward: it must not hold the input where autograd holds it elsewhere.
        hidden, others = kwargs.pop("hidden_states") if by_name else args[0], args[1:]
        before = {name: _snapshot(value) for name, value in kwargs.items() if _is_cache(value)}
        first = True

        def run(states: torch.Tensor) -> Any:
            nonlocal first
            # Each second run works on a copy of its own: there may be several, one a backward.
            caches = {} if first else {name: _snapshot(value) for name, value in before.items()}
            first = False
            if states.device.type == "cpu":
                trimmer.check()
            if by_name:
                return inner(hidden_states=states, **{**kwargs, **caches})
            return inner(states, *others, **{**kwargs, **caches})

        with contextlib.nullcontext() if offload is None else offload.hooks():
            return checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=True, **extra)

    return forward


def _is_cache(value: Any) -> bool:
    from transformers import Cache

    return isinstance(value, Cache)


def _snapshot(cache: Any) -> Any:
    """A copy that shares tensors, for layers that replace theirs when they grow."""
    if any(getattr(layer, "is_compileable", False) for layer in cache.layers):
        raise UnsupportedError(
            "a cache that is written in place can't be given to a layer twice", "train with a dynamic cache"
        )
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _keep_attention(_context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what a fused attention kernel returned, unless it drew random numbers."""
    name = str(operation)
    if not ("attention" in name or "attn" in name) or "backward" in name:
        return CheckpointPolicy.PREFER_RECOMPUTE
    # Leaving a draw out would shift every later one in the second run.
    schema = getattr(operation, "_schema", None)
    named = dict(zip((part.name for part in schema.arguments), args, strict=False)) if schema is not None else {}
    dropout = {**named, **kwargs}.get("dropout_p", 0.0)
    return CheckpointPolicy.PREFER_RECOMPUTE if dropout else CheckpointPolicy.MUST_SAVE
