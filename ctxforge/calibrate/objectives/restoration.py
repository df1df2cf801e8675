"""Restoration: hidden states held to those that the source has on the same short text (LongReD, arXiv 2502.07365).

A conversion moves every layer's hidden states, also on text that the source read well. Where a text is no longer than
the trained length, the source's states say what they should be, at every layer and every token: far more than the next
token alone. With skipped positions (PoSE's chunks of one contiguous text) the same target teaches that a jump in
position changes nothing: the paper's short-to-long distillation, here on all layers and not on the output alone.

The distance of a token in a layer is |h - t|^2 / |t|^2, t the source's state. It is averaged over layers, and over the
tokens of the step that are held, be they many or few beside those whose loss counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.errors import UnsupportedError

_WITHOUT = "add --set objective.restoration=0"
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Restored:
    """What a batch is held to.

    Attributes:
        states: of the source after each layer, [B, T', d], T' at most the batch's length.
        tokens: which of them count, bool [B, T'].
        weight: of the sum of distances beside the sum of losses: both are divided by the step's denominator.
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
        return sum(p.nbytes for p in [*self.model.parameters(), *self.model.buffers()])

    def state_bytes(self, tokens: int) -> int:
        """What its states of `tokens` tokens take, which are kept until the model in training has its own."""
        layers, width = _shape(self.model)
        return tokens * layers * width * int(causal_lm(self.model).get_input_embeddings().weight.element_size())

    def check(self, model: Any) -> None:
        """Refuse a model whose states can't be held to this one's.

        Args:
            model: a causal LM of transformers, or one that peft put adapters into.

        Raises:
            UnsupportedError: it has another number of layers, or is of another width.
        """
        ours, theirs = _shape(model), _shape(self.model)
        if ours != theirs:
            found = " and the model ".join(f"{layers} layers of width {width}" for layers, width in (theirs, ours))
            raise UnsupportedError(
                f"the source has {found}: hidden states can't be held to the source's",
                f"give the checkpoint that was extended as --source, or {_WITHOUT}",
            )

    def states(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Hidden states after each layer, [B, T', d], for a model's arguments (`placement.model_inputs`).

        Those after the last layer are what the head gets: behind the last norm.

        Raises:
            UnsupportedError: the source gives none.
        """
        with torch.no_grad():
            output = causal_lm(self.model).get_decoder()(
                **{**inputs, "output_hidden_states": True, "return_dict": True}
            )
        return after_layers(output, "the source")


def after_layers(output: Any, whose: str) -> tuple[torch.Tensor, ...]:
    """Hidden states after each layer from what a decoder returned.

    Args:
        output: of a decoder that was called with `output_hidden_states`.
        whose: for the message.

    Raises:
        UnsupportedError: there are none.
    """
    found = getattr(output, "hidden_states", None)
    if not found or len(found) < 2 or any(one is None for one in found):
        raise UnsupportedError(f"{whose} gives no hidden states, layer by layer, to restore", _WITHOUT)
    return tuple(found[1:])


def distance(student: Sequence[torch.Tensor], restored: Restored) -> torch.Tensor:
    """Sum over tokens of the mean over layers of |h - t|^2 / |t|^2, a scalar with a gradient.

    For the backward pass nothing is kept but the states as they are, and a number a token and layer.

    Args:
        student: hidden states after each layer, [B, T, d] with T >= T'; later tokens are left out.
        restored: what they are held to.

    Raises:
        UnsupportedError: other layers or another width than the source's.
    """
    length = restored.tokens.shape[1]
    if len(student) != len(restored.states) or student[0].shape[-1] != restored.states[0].shape[-1]:
        raise UnsupportedError("the model's hidden states are not those of its source, layer by layer", _WITHOUT)
    total = torch.zeros((), device=restored.tokens.device)
    for ours, theirs in zip(student, restored.states, strict=True):
        total = total + _Apart.apply(ours[:, :length], theirs, restored.tokens)  # type: ignore[no-untyped-call]
    return total / len(restored.states)


class _Apart(torch.autograd.Function):
    """Sum over the tokens that count of |h - t|^2 / |t|^2, in float32 or wider, of states [B, T', d] of any dtype."""

    @staticmethod
    def forward(ctx: Any, ours: torch.Tensor, theirs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        target = _wide(theirs)
        scale = tokens / target.square().sum(-1).clamp_min(_SMALLEST)
        ctx.save_for_backward(ours, theirs, scale)
        return ((_wide(ours) - target).square().sum(-1) * scale).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ours, theirs, scale = ctx.saved_tensors
        found = (_wide(ours) - _wide(theirs)) * (2 * upstream[0] * scale)[..., None]
        return found.to(ours.dtype), None, None


def _shape(model: Any) -> tuple[int, int]:
    """Layers and width."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    return int(getattr(config, "num_hidden_layers", 0)), int(inner.get_input_embeddings().weight.shape[1])


def _wide(states: torch.Tensor) -> torch.Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
