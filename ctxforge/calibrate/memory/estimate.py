"""What a training step takes in memory, before it is run, and the longest text that fits.

Weights, gradients and optimiser states are counted; what depends on the length is rehearsed on the meta device
(`rehearsal`) with one layer of each kind and with two, which gives what each layer adds and what is there once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ctxforge.calibrate.memory.layers import decoder_layers
from ctxforge.calibrate.memory.rehearsal import Peaks, kinds, on_meta, rehearse, writes_scores_out
from ctxforge.calibrate.memory.tiled_mlp import position_wise_mlps
from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.errors import ResourceError, UsageError

Optimiser = Literal["adamw", "adamw-8bit"]
# bitsandbytes: two states of a byte, and a float32 for each block of 256 of each.
_EIGHT_BIT_BYTES = 2 * (1 + 4 / 256)
_EIGHT_BIT_SMALLEST = 4096
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepOptions:
    """How a step is run.

    Attributes:
        batch: texts at once on one device.
        dtype: of weights and activations; None for the model's own.
        checkpoint: keep a layer's input alone (`Checkpointing`).
        keep_attention: and attention's output.
        offload: keep inputs in the processor's memory (`Offload`), on a GPU.
        tile_tokens: tokens of a tile of an MLP (`TiledMLPs`); None for no tiles.
        slice_rows: rows of a slice of the loss; None for its own choice.
        optimiser: "adamw" has two states in the parameter's dtype, "adamw-8bit" two of a byte.
        dense_mask: whether a mask [B, 1, L, L] of bools is given.
        shards: devices that weights, gradients and states are split over (FSDP2).
        gpu: whether the step runs on one: attention on a CPU copies shared heads, and nothing is moved off it.
    """

    batch: int = 1
    dtype: str | None = None
    checkpoint: bool = True
    keep_attention: bool = False
    offload: bool = False
    tile_tokens: int | None = None
    slice_rows: int | None = None
    optimiser: Optimiser = "adamw"
    dense_mask: bool = False
    shards: int = 1
    gpu: bool = False

    def __post_init__(self) -> None:
        if min(self.batch, self.shards) < 1:
            raise UsageError(f"{self.batch} texts on {self.shards} devices", "give at least 1 of each")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise UsageError(f"no such dtype: {self.dtype}", f"choose one of {', '.join(_DTYPES)}")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Attributes:
        length: tokens of a text.
        weights: parameters and buffers, and one layer's whole weights where they are split over devices.
        gradients: of what is trained.
        optimiser: its states.
        checkpoints: what all layers keep until their backward.
        layer: what one layer's forward and backward need beside that.
        loss: what head and loss need beside the checkpoints.
        mask: of a dense mask, as given or as an attention that writes its scores out makes one.
        update: what the optimiser's step needs beside weights, gradients and states.
        host: kept in the processor's memory.
    """

    length: int
    weights: int
    gradients: int
    optimiser: int
    checkpoints: int
    layer: int
    loss: int
    mask: int
    update: int
    host: int = 0

    @property
    def fixed(self) -> int:
        """What does not depend on the length."""
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> int:
        """The peak: layers and loss are not at work at the same time, and neither is the update."""
        return self.fixed + max(self.mask + self.checkpoints + max(self.layer, self.loss), self.update)


def meta_model(config: Any, dtype: str = "bfloat16") -> Any:
    """A causal LM without memory, from its config: what `Estimator` takes where nothing is loaded yet.

    Args:
        config: of transformers.
        dtype: of the weights.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=_DTYPES[dtype])


class Estimator:
    """Estimates for one model at any length and with any options.

    Args:
        model: a causal LM of transformers on any device, the meta device included, as it will be trained: with its
            adapters, and `requires_grad` where something is trained.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kinds = kinds(model)
        self._tiles = self._tiled_parts()
        self._metas: dict[str | None, Any] = {}
        self._known: dict[Any, Peaks] = {}

    def estimate(self, length: int, options: StepOptions) -> MemoryEstimate:
        """What a step on texts of `length` tokens takes.

        Raises:
            UsageError: a length below 1.
        """
        if length < 1:
            raise UsageError(f"a text of {length} tokens is not usable", "give a length of at least 1")
        meta = self._meta(options.dtype)
        kept, layer, loss = 0, 0, 0
        for kind in self.kinds:
            one, two = (self._peaks(meta, [kind.index] * times, length, options) for times in (1, 2))
            adds = two.loss - one.loss
            kept += kind.count * adds
            layer = max(layer, two.backward - 2 * adds, two.forward - 2 * adds)
            loss = max(loss, two.loss - 2 * adds)
        moved = self._moved(meta, length, options)
        weights, gradients, states, largest = _fixed(meta, options)
        return MemoryEstimate(
            length=length,
            weights=weights,
            gradients=gradients,
            optimiser=states,
            checkpoints=kept - moved,
            layer=layer,
            loss=loss,
            mask=options.batch * length * length * _mask_bytes(meta, options),
            # AdamW for one tensor at a time: the root of the second state, and the quotient.
            update=2 * largest,
            host=moved,
        )

    def longest(self, memory: int, options: StepOptions, *, multiple: int = 256, limit: int = 1 << 22) -> int:
        """The longest length, a multiple of `multiple`, that fits into `memory` bytes; 0 if none does."""

        low, high = 0, limit // multiple + 1
        points: list[tuple[int, int]] = []
        guess = max(1, 4096 // multiple)
        while high - low > max(1, low // 64):
            total = self.estimate(guess * multiple, options).total
            low, high = (guess, high) if total <= memory else (low, guess)
            points.append((guess, total))
            guess = _next_guess(points, memory, low, high)
        return low * multiple

    def _peaks(self, meta: Any, layers: list[int], length: int, options: StepOptions) -> Peaks:
        key = (tuple(layers), length, replace(options, optimiser="adamw", shards=1, dense_mask=False, offload=False))
        if key not in self._known:
            self._known[key] = rehearse(
                meta,
                layers,
                (options.batch, length),
                checkpoint=options.checkpoint,
                keep_attention=options.keep_attention and options.checkpoint,
                tile_tokens=options.tile_tokens,
                tiled=self._tiles,
                slice_rows=options.slice_rows,
                copies_heads=not options.gpu or options.dense_mask,
            )
        return self._known[key]

    def _moved(self, meta: Any, length: int, options: StepOptions) -> int:
        """Bytes of inputs that wait in the processor's memory: all but the two in flight."""
        if not (options.offload and options.checkpoint and options.gpu):
            return 0
        embedding = causal_lm(meta).get_input_embeddings().weight
        each = options.batch * length * embedding.shape[1] * embedding.element_size()
        return int(each * max(0, len(decoder_layers(meta)) - 2))

    def _meta(self, dtype: str | None) -> Any:
        if dtype not in self._metas:
            meta = on_meta(self.model, None if dtype is None else _DTYPES[dtype])
            self._metas[dtype] = meta
        return self._metas[dtype]

    def _tiled_parts(self) -> list[tuple[int, str]]:
        """Layer and name of each MLP that may be tiled; on the meta device, where none can be tried, by their look."""
        parts = set(map(id, position_wise_mlps(self.model)))
        return [
            (number, name)
            for number, layer in enumerate(decoder_layers(self.model))
            for name, part in layer.named_children()
            if id(part) in parts
        ]


def refuse_too_large(found: MemoryEstimate, memory: int, ways: Callable[[], list[str]]) -> None:
    """Raise unless an estimate fits.

    Args:
        found: the estimate.
        memory: bytes of the device.
        ways: what would fit, asked for only when this does not.

    Raises:
        ResourceError: it does not fit; the remedy names what would.
    """
    if found.total <= memory:
        return
    listed = ways()
    raise ResourceError(
        f"a step on {found.length} tokens takes about {gibibytes(found.total)}, and the device has {gibibytes(memory)}",
        "; or ".join(listed) if listed else "use a smaller model, a shorter length or more devices",
    )


def _mask_bytes(meta: Any, options: StepOptions) -> int:
    """Bytes of an entry of the mask [B, 1, L, L]."""
    made = causal_lm(meta).get_input_embeddings().weight.element_size() if writes_scores_out(meta) else 0
    return int(made + (1 if options.dense_mask else 0))


def _next_guess(points: list[tuple[int, int]], memory: int, low: int, high: int) -> int:
    """Where the line through the last two points meets `memory`, kept inside of (low, high)."""
    count, total = points[-1]
    if len(points) == 1:
        guess = count // 2 if total > memory else 2 * count
    elif len(points) > 8:
        guess = (low + high) // 2
    else:
        before, less = points[-2]
        slope = (total - less) / (count - before)
        guess = count + int((memory - total) / slope) if slope > 0 else (low + high) // 2
    # A guess at the edge of what is known closes the other side.
    return max(low + max(1, low // 64), min(guess, high - max(1, high // 128)))


def gibibytes(count: int) -> str:
    """Bytes in GiB with two figures after the point."""
    return f"{count / 2**30:.2f} GiB"


def _fixed(meta: Any, options: StepOptions) -> tuple[int, int, int, int]:
    """Bytes of weights, gradients and states on one device, and of the largest trained tensor."""
    every = [*meta.parameters(), *meta.buffers()]
    weights = sum(p.nbytes for p in every)
    trained = [p for p in meta.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    states = 0.0
    for p in trained:
        small = options.optimiser == "adamw" or p.numel() < _EIGHT_BIT_SMALLEST
        # bitsandbytes keeps the states of small tensors in float32.
        wide = 2 * (p.nbytes if options.optimiser == "adamw" else 4 * p.numel())
        states += wide if small else _EIGHT_BIT_BYTES * p.numel()
    largest = max((p.nbytes for p in trained), default=0)
    if options.shards == 1:
        return weights, gradients, int(states), largest
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in decoder_layers(meta)]
    # While a layer runs, its weights and the next one's are whole; so are those outside of all layers.
    gathered = 2 * max(layers) + weights - sum(layers)
    split = options.shards
    return weights // split + gathered, gradients // split, int(states / split), largest // split
