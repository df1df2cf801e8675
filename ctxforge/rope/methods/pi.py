"""Position Interpolation: every frequency divided by the scale."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """PI has none."""


def compute(_parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = s, a = 1 (2306.15595, eq. 4)."""
    scale = request.scale
    return Rotation((scale,) * request.spectrum.pairs, form=RopeForm("linear", {"factor": scale}))


def warnings(_parameters: Parameters, _request: Request) -> tuple[str, ...]:
    """PI without a fine-tune is known to fail: 2306.15595 table 3, step 0."""
    return ("PI needs a fine-tune: untuned LLaMA-7B had perplexity 16.1 at s=4 and 112 at s=8 (2306.15595, table 3)",)


METHOD = Method(
    name="pi",
    title="Position Interpolation (linear)",
    reference="2306.15595 eq. 4",
    summary="Divides every position by s, so that L' tokens span the angles of L0.",
    evidence=(
        "LLaMA-7B fine-tuned to 32k: PG19 perplexity 7.23 at 2k, 6.77 at 32k (table 1)",
        "best of the bases that Giraffe compared, usable to about twice its training scale (2308.10882)",
    ),
    costs=(
        "untuned LLaMA-7B: perplexity 16.1 at s=4, 112 at s=8 (table 3, step 0)",
        "short text, fine-tuned: BoolQ 76.1 -> 64.7 at s=16 (table 5)",
    ),
    needs="calibration",
    aliases=("linear",),
    needs_training="yes, up to 1000 steps",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
