"""YaRN as its paper writes it: the ramp linear in rotations, not in the pair index."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.methods.yarn import temperature
from ctxforge.rope.spectrum import blend_frequencies, clip
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """Paper-form YaRN's parameters."""

    alpha: float = parameter(1.0, "pairs that turn less often than this within L0 are interpolated by s")
    beta: float = parameter(32.0, "pairs that turn more often than this within L0 are left alone")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """1/lambda_i = (1 - t)/s + t, t = clip((r_i - alpha)/(beta - alpha), 0, 1), r_i rotations in L0; a = 0.1 ln s + 1.

    Source: 2309.00071, eq. 17 to 20 and 22. The type `llama3` with low = alpha and high = beta computes these divisors.

    Raises:
        UsageError: beta is not above alpha.
    """
    if parameters.beta <= parameters.alpha:
        raise UsageError(
            f"beta={parameters.beta:g} is not above alpha={parameters.alpha:g}",
            "beta counts rotations of the fast pairs and must be the larger (defaults: 32 and 1)",
        )
    width = parameters.beta - parameters.alpha
    turns = request.spectrum.rotations(request.original_length)
    weights = [1.0 - clip((r - parameters.alpha) / width, 0.0, 1.0) for r in turns]
    form = RopeForm(
        "llama3",
        {
            "factor": request.scale,
            "low_freq_factor": parameters.alpha,
            "high_freq_factor": parameters.beta,
            "original_max_position_embeddings": request.original_length,
        },
    )
    return Rotation(blend_frequencies(weights, request.scale), temperature(request.scale), form)


METHOD = Method(
    name="yarn-paper",
    title="YaRN, paper form",
    reference="2309.00071 eq. 17-20, 22; difference: jquesnelle/yarn#60 and #65",
    summary="YaRN with its ramp linear in rotations: middle pairs are interpolated more than by the published code.",
    evidence=(
        "no published table: every YaRN result was measured with the index ramp of the method `yarn`",
        "with the temperature folded into the query it is the type llama3, which no engine can compute wrongly",
    ),
    costs=(
        "another function than published YaRN checkpoints were trained with: Llama-2, s=16, pair 32 is divided by 4.36"
        " instead of 1.76",
        "static: short prompts pay for it too",
    ),
    needs_training="not studied; calibrate as for yarn",
    parameters=Parameters,
    compute=compute,
)
