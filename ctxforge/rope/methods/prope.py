"""p-RoPE: only the fastest part of the pairs rotates."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import UNROTATED, RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """p-RoPE's parameters."""

    p: float = parameter(0.75, "fraction of the pairs that keep rotating, above 0 and at most 1 (0: see drope)")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = 1 for the first int(p d/2) pairs, the others don't rotate; a = 1; s plays no part.

    Source: 2410.06205, section 6.1 and appendix; transformers:modeling_rope_utils.py
    `_compute_proportional_rope_parameters`.

    Raises:
        UsageError: p above 1.
    """
    if parameters.p > 1:
        raise UsageError(f"p-rope: p={parameters.p:g} is above 1", "give the fraction of pairs to keep, such as 0.75")
    d = request.spectrum.rotated_dims
    kept = int(parameters.p * d // 2)
    divisors = (1.0,) * kept + (UNROTATED,) * (d // 2 - kept)
    return Rotation(divisors, form=RopeForm("proportional", {"partial_rotary_factor": parameters.p}))


METHOD = Method(
    name="p-rope",
    title="p-RoPE",
    reference="2410.06205 section 6.1; transformers:modeling_rope_utils.py (type proportional)",
    summary="Stops the slowest pairs: they then match by content at any distance.",
    evidence=(
        "Gemma-2B trained from scratch at 8k, p=0.75: validation perplexity 4.4414 on Wiki and 6.4422 on FlanV2, RoPE"
        " 4.4627 and 6.4429, RoPE with theta 500k 4.4485 and 6.4593 (table 2)",
        "Gemma 4 trains its global layers with p=0.25 and theta 1e6 (transformers, type proportional)",
    ),
    costs=(
        "trained models use their slow pairs: cutting them off without training changes every score",
        "no published conversion of a trained model",
    ),
    needs="calibration",
    needs_training="from scratch in the paper; continued training at least",
    aliases=("prope",),
    experimental=True,
    any_target=True,
    parameters=Parameters,
    compute=compute,
)
