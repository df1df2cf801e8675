"""What happens to q and k before the rotary function: the same hidden states put through two models' weights.

A converted model is run with the rotated q and k of its source put in place of its own, and the outputs of its
attention too. Its hidden states are then the source's in every layer, and what its rotary and attention functions are
given can be compared with what the source's were given: a temperature folded into the query shows as a factor.
Everything else must be equal, the logits too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tests.architectures.watch import AttentionCall, Place, RotaryCall, run


@dataclass(frozen=True)
class Recorded:
    """One call of the source: who called, the vectors that went in, and what came out."""

    place: Place
    inputs: tuple[torch.Tensor, ...]
    outputs: Any


@dataclass(frozen=True)
class Recording:
    """One run of the source: its rotary and its attention calls, in order, and its logits."""

    rotary: list[Recorded]
    attention: list[Recorded]
    logits: torch.Tensor


@dataclass(frozen=True)
class Scaled:
    """How much larger than the source's a call's vectors are: for each of them, a factor a dimension."""

    place: Place
    factors: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Replayed:
    """A run on the source's hidden states: what reaches the rotary and the attention functions, and the logits.

    The attention calls are given the source's rotated q and k to work on: a factor there comes from behind the
    rotation.
    """

    rotary: list[Scaled]
    attention: list[Scaled]
    logits: torch.Tensor


def record(model: Any, positions: list[int] | None, inputs: dict[str, Any] | None) -> Recording:
    """Run the source."""
    rotary: list[Recorded] = []
    attention: list[Recorded] = []

    def answer(call: RotaryCall) -> tuple[torch.Tensor, ...]:
        outputs = call.outputs()
        rotary.append(Recorded(call.place, _copies(call.inputs), _copies(outputs)))
        return outputs

    def attend(call: AttentionCall) -> Any:
        outputs = call.compute()
        attention.append(Recorded(call.place, _copies((call.query, call.key)), outputs))
        return outputs

    _watch, logits = run(model, answer, positions, inputs, attend)
    return Recording(rotary, attention, logits)


def replay(model: Any, recording: Recording, positions: list[int] | None, inputs: dict[str, Any] | None) -> Replayed:
    """Run `model` with the recorded rotations and attention in place of its own.

    Raises:
        AssertionError: it calls these functions elsewhere, or with vectors that no factor a dimension explains.
    """
    rotary: list[Scaled] = []
    attention: list[Scaled] = []

    def scaled(place: Place, vectors: tuple[torch.Tensor, ...], before: Recorded) -> Scaled:
        assert place == before.place
        return Scaled(place, tuple(_factors(new, old) for new, old in zip(vectors, before.inputs, strict=True)))

    def answer(call: RotaryCall) -> tuple[torch.Tensor, ...]:
        before = recording.rotary[len(rotary)]
        rotary.append(scaled(call.place, call.inputs, before))
        outputs: tuple[torch.Tensor, ...] = before.outputs
        return outputs

    def attend(call: AttentionCall) -> Any:
        before = recording.attention[len(attention)]
        attention.append(scaled(call.place, (call.query, call.key), before))
        return before.outputs

    _watch, logits = run(model, answer, positions, inputs, attend)
    assert (len(rotary), len(attention)) == (len(recording.rotary), len(recording.attention))
    return Replayed(rotary, attention, logits)


def _copies(vectors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in vectors)


def _factors(new: torch.Tensor, old: torch.Tensor) -> tuple[float, ...]:
    width = new.shape[-1]
    a, b = new.reshape(-1, width).double(), old.reshape(-1, width).double()
    factors = (a * b).sum(0) / (b * b).sum(0)
    factors = torch.where(b.abs().amax(0) == 0, 1.0, factors)
    assert (a - factors * b).abs().max() <= 1e-5 * a.abs().max()
    return tuple(factors.tolist())


def cancels_scale(model: Any, positions: list[int] | None, inputs: dict[str, Any] | None) -> bool:
    """True when a factor on the rotated q and k changes nothing: a norm stands between rotation and attention."""
    plain = record(model, positions, inputs).logits
    _watch, doubled = run(model, lambda call: tuple(2 * x for x in call.outputs()), positions, inputs)
    return bool((doubled - plain).abs().max() <= 1e-4 * plain.abs().max())
