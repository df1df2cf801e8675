"""Llama 3.1's scaling: by parts, with the ramp linear in rotations, no temperature."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.spectrum import blend_frequencies, clip
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """llama3's parameters."""

    low_freq_factor: float = parameter(1.0, "pairs that turn less often than this within L0 are interpolated by s")
    high_freq_factor: float = parameter(4.0, "pairs that turn more often than this within L0 are left alone")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """1/lambda_i = (1 - t)/s + t with t = clip((r_i - low)/(high - low), 0, 1), r_i rotations in L0; a = 1.

    Source: transformers:modeling_rope_utils.py `_compute_llama3_parameters`; with low 1 and high 32 it is the by-parts
    interpolation as the YaRN paper writes it.

    Raises:
        UsageError: high_freq_factor is not above low_freq_factor.
    """
    low, high = parameters.low_freq_factor, parameters.high_freq_factor
    if high <= low:
        raise UsageError(
            f"high_freq_factor={high:g} is not above low_freq_factor={low:g}",
            "high_freq_factor must be the larger (defaults: 4 and 1)",
        )
    turns = request.spectrum.rotations(request.original_length)
    weights = [1.0 - clip((r - low) / (high - low), 0.0, 1.0) for r in turns]
    form = RopeForm(
        "llama3",
        {
            "factor": request.scale,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": request.original_length,
        },
    )
    return Rotation(blend_frequencies(weights, request.scale), form=form)


METHOD = Method(
    name="llama3",
    title="Llama 3.1 frequency scaling",
    reference="transformers:modeling_rope_utils.py _compute_llama3_parameters (Llama 3.1)",
    summary="Divides slow pairs by s, keeps fast ones, ramps linearly in rotations; no temperature.",
    evidence=(
        "Llama 3.1: 8k -> 128k with about 800B tokens of continual training (as cited in 2502.20082)",
        "the most portable frequency-selective type: every engine computes it, and none adds a temperature",
    ),
    costs=("untuned it is weaker than YaRN: it interpolates fewer pairs and has no temperature",),
    aliases=("llama-3",),
    needs_training="recommended",
    parameters=Parameters,
    compute=compute,
)
