"""No method: RoPE is left as it is."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """None."""


def compute(_parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = 1, a = 1."""
    return Rotation((1.0,) * request.spectrum.pairs)


METHOD = Method(
    name="none",
    title="RoPE left as it is",
    reference="-",
    summary="Changes nothing: for copies, and for conversions that only attach something.",
    evidence=("a control: what the model does without an extension",),
    costs=("beyond the trained length perplexity explodes",),
    needs_training="no",
    parameters=Parameters,
    compute=compute,
)
