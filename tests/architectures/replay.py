"""What happens to q and k before the rotary function: the same hidden states put through two models' weights.

A converted model is run with the rotated q and k of its source put in place of its own. Its hidden states are then
the source's in every layer, and what its rotary functions are given can be compared with what the source's were given:
a temperature folded into the query shows as a factor. Everything else must be equal, the logits too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tests.architectures.watch import Place, RotaryCall, run


@dataclass(frozen=True)
class Recorded:
    """One rotary call of the source: who called, and the vectors that went in and came out."""

    place: Place
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Scaled:
    """How much larger than the source's a call's vectors are: for each rotated argument, a factor a dimension."""

    place: Place
    factors: tuple[tuple[float, ...], ...]


def record(
    model: Any, positions: list[int] | None, inputs: dict[str, Any] | None
) -> tuple[list[Recorded], torch.Tensor]:
    """The rotary calls of one run, in order, and the logits."""
    calls: list[Recorded] = []

    def answer(call: RotaryCall) -> tuple[torch.Tensor, ...]:
        outputs = call.outputs()
        count = len(call.rotated)
        calls.append(
            Recorded(call.place, tuple(x.clone() for x in call.inputs), tuple(x.clone() for x in outputs[:count]))
        )
        return outputs

    _watch, logits = run(model, answer, positions, inputs)
    return calls, logits


def replay(
    model: Any, recorded: list[Recorded], positions: list[int] | None, inputs: dict[str, Any] | None
) -> tuple[list[Scaled], torch.Tensor]:
    """Run `model` with the recorded outputs in place of its own rotations.

    Raises:
        AssertionError: it calls its rotary functions elsewhere, or with vectors that no factor a dimension explains.
    """
    found: list[Scaled] = []

    def answer(call: RotaryCall) -> tuple[torch.Tensor, ...]:
        before = recorded[len(found)]
        assert call.place == before.place
        factors = tuple(_factors(new, old) for new, old in zip(call.inputs, before.inputs, strict=True))
        found.append(Scaled(call.place, factors))
        return before.outputs

    _watch, logits = run(model, answer, positions, inputs)
    assert len(found) == len(recorded)
    return found, logits


def _factors(new: torch.Tensor, old: torch.Tensor) -> tuple[float, ...]:
    width = new.shape[-1]
    a, b = new.reshape(-1, width).double(), old.reshape(-1, width).double()
    factors = (a * b).sum(0) / (b * b).sum(0)
    assert (a - factors * b).abs().max() <= 1e-5 * a.abs().max()
    return tuple(factors.tolist())


def cancels_scale(model: Any, positions: list[int] | None, inputs: dict[str, Any] | None) -> bool:
    """True when a factor on the rotated q and k changes nothing: a norm stands between rotation and attention."""
    _calls, plain = record(model, positions, inputs)
    _watch, doubled = run(model, lambda call: tuple(2 * x for x in call.outputs()), positions, inputs)
    return bool((doubled - plain).abs().max() <= 1e-4 * plain.abs().max())
