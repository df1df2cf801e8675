"""What would fit, where a step does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ctxforge.calibrate.memory.estimate import Estimator, MemoryEstimate, StepOptions, gibibytes
from ctxforge.calibrate.memory.rehearsal import on_meta
from ctxforge.calibrate.memory.tiled_mlp import default_tile
from ctxforge.calibrate.objectives.head import causal_lm

ADAPTER_RANK = 16


@dataclass(frozen=True)
class Way:
    """One way to a smaller step, with all the ways before it.

    Attributes:
        what: what is changed, as an instruction.
        estimate: of the step then.
        fits: whether that is little enough.
        options: of the step then.
    """

    what: str
    estimate: MemoryEstimate
    fits: bool
    options: StepOptions

    @property
    def line(self) -> str:
        """For a message."""
        return f"{self.what} ({gibibytes(self.estimate.total)})"


def ways_to_fit(estimator: Estimator, length: int, options: StepOptions, memory: int) -> list[Way]:
    """Changes in the order of what they cost, each added to those before, up to the first that fits.

    Checkpointing costs a forward pass, tiles nothing beside it, moving inputs away a copy; adapters, a shorter length
    and more devices are other runs, and come last. If nothing fits, the last way is the smallest step there is.

    Args:
        estimator: of the model as it was to be trained.
        length: tokens of a text.
        options: as they were asked for.
        memory: bytes of one device.
    """
    found: list[Way] = []
    for what, changed, used in _changes(estimator, options):
        estimate = used.estimate(length, changed)
        if found and estimate.total >= found[-1].estimate.total:
            continue
        found.append(Way(what, estimate, estimate.total <= memory, changed))
        if found[-1].fits:
            return found
        options, estimator = changed, used
    shorter = estimator.longest(memory, options)
    if shorter:
        last = Way(f"train on texts of {shorter} tokens", estimator.estimate(shorter, options), True, options)
        found.append(last)
    return found


def _changes(estimator: Estimator, options: StepOptions) -> Iterator[tuple[str, StepOptions, Estimator]]:
    """What to change, the options with it and all before, and the estimator of the model then."""
    now = options
    if now.batch > 1:
        now = replace(now, batch=1)
        yield "give one text at a time, and accumulate gradients", now, estimator
    if not now.checkpoint:
        now = replace(now, checkpoint=True)
        yield "checkpoint the layers", now, estimator
    if now.keep_attention:
        now = replace(now, keep_attention=False)
        yield "compute attention again", now, estimator
    if now.tile_tokens is None:
        width = causal_lm(estimator.model).get_input_embeddings().weight.shape[1]
        now = replace(now, tile_tokens=default_tile(int(width)))
        yield f"tile the MLPs over {now.tile_tokens} tokens", now, estimator
    if now.gpu and not now.offload:
        now = replace(now, offload=True)
        yield "keep the layers' inputs in the processor's memory", now, estimator
    if now.gpu and now.optimiser == "adamw":
        now = replace(now, optimiser="adamw-8bit")
        yield "take the 8-bit optimiser", now, estimator
    if _trains_all(estimator.model):
        adapted = Estimator(_with_adapters(estimator.model))
        yield f"train adapters of rank {ADAPTER_RANK} instead of all weights", now, adapted


def _trains_all(model: Any) -> bool:
    """Whether more than half of the parameters are trained."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return bool(2 * trained > sum(p.numel() for p in model.parameters()))


def _with_adapters(model: Any) -> Any:
    """A copy without memory that trains adapters on every linear layer but the head."""
    import warnings

    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(on_meta(model), LoraConfig(r=ADAPTER_RANK, target_modules="all-linear"))
