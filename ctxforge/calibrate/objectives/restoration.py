"""Restoration: hidden states held to those that the source has on the same short text (LongReD, arXiv 2502.07365).

A conversion moves every layer's hidden states, also on text that the source read well. Where a text is no longer than
the trained length, the source's states say what they should be, at every layer and every token: far more than the next
token alone. With skipped positions (PoSE's chunks of one contiguous text) the same target teaches that a jump in
position changes nothing: the paper's short-to-long distillation, here on all layers and not on the output alone.

The distance of a token in a layer is |h - t|^2 / |t|^2, t the source's state. It is summed over tokens, averaged over
layers and divided by the step's denominator, so it adds up over micro-batches as the loss does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.errors import UnsupportedError


@dataclass(frozen=True)
class Restored:
    """What a batch is held to.

    Attributes:
        states: of the source after each layer, [B, T', d], T' at most the batch's length.
        tokens: which of them count, bool [B, T'].
        weight: of the distance beside the loss.
    """

    states: Sequence[torch.Tensor]
    tokens: torch.Tensor
    weight: float


class Teacher:
    """The source, as it was before the extension.

    Args:
        model: a causal LM of transformers; it is frozen and put into evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)

    @property
    def bytes(self) -> int:
        """What its weights take."""
        return sum(p.nbytes for p in self.model.parameters())

    def states(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Hidden states after each layer, [B, T', d], for a model's arguments (`placement.model_inputs`)."""
        with torch.no_grad():
            output = causal_lm(self.model).get_decoder()(
                **{**inputs, "output_hidden_states": True, "return_dict": True}
            )
        return tuple(output.hidden_states[1:])


def distance(student: Sequence[torch.Tensor] | None, restored: Restored) -> torch.Tensor:
    """Sum over tokens of the mean over layers of |h - t|^2 / |t|^2, a scalar with a gradient.

    Args:
        student: hidden states after each layer, [B, T, d] with T >= T'; later tokens are left out.
        restored: what they are held to.

    Raises:
        UnsupportedError: the model gives no hidden states, or others than the source.
    """
    if student is None or len(student) != len(restored.states):
        raise UnsupportedError(
            "the model and its source don't give hidden states layer by layer", "set objective.restoration=0"
        )
    length = restored.tokens.shape[1]
    total = torch.zeros((), device=restored.tokens.device, dtype=torch.float32)
    for ours, theirs in zip(student, restored.states, strict=True):
        target = theirs.float()
        apart = (ours[:, :length].float() - target).square().sum(-1) / target.square().sum(-1).clamp_min(1e-12)
        total = total + (apart * restored.tokens).sum()
    return total / len(restored.states)
