"""Interpolation of a table of learned positions: Position Interpolation for models without RoPE."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError
from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """It has none."""


def compute(_parameters: Parameters, _request: Request) -> Rotation:
    """New row p = (1 - t) w[k] + t w[k + 1] with k + t = p L0/L'; no rotation, so a RoPE model is refused.

    Raises:
        UnsupportedError: always; `ctxforge.positions.learned` does the work on a table.
    """
    raise UnsupportedError(
        "learned-interpolation stretches a table of learned positions, and this model has RoPE",
        "use --method pi, which interpolates rotary positions",
    )


METHOD = Method(
    name="learned-interpolation",
    title="Interpolation of learned positions",
    reference="2306.15595 eq. 3 on a table; as for ViT's position embeddings (2010.11929 section 3.2)",
    summary="Stretches the table of position embeddings linearly, so that L' tokens span the L0 trained rows.",
    evidence=(
        "no published result on a language model: 2306.15595 only conjectures that interpolation carries over",
        "image models are routinely fine-tuned from an interpolated table (2010.11929 section 3.2)",
    ),
    needs_training="yes: no result is known without it",
    parameters=Parameters,
    compute=compute,
    scheme="learned",
    needs="calibration",
    costs=(
        "neighbouring positions come closer by the factor s; the last s positions share one embedding",
        "models that build a causal mask of L' x L' (GPT-Neo, GPT-BigCode, openai-gpt) need the memory for it",
    ),
    experimental=True,
)
