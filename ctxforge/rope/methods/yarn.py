"""YaRN: interpolate slow pairs, keep fast ones, ramp between, and raise the temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.spectrum import blend_frequencies, clip
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """YaRN's parameters."""

    beta_fast: float = parameter(32.0, "pairs that turn more often than this within L0 are left alone")
    beta_slow: float = parameter(1.0, "pairs that turn less often than this within L0 are interpolated by s")
    truncate: bool = parameter(True, "round the ramp's ends to whole pairs, as the published code does")


def temperature(scale: float) -> float:
    """a = 0.1 ln s + 1 (2309.00071, eq. 22, as sqrt(1/t))."""
    return 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0


def ramp(parameters: Parameters, request: Request) -> tuple[float, ...]:
    """Interpolation weights g_i = clip((i - lo)/(hi - lo), 0, 1), lo = c(beta_fast), hi = c(beta_slow).

    The ramp is linear in the pair index, as in every implementation; the paper writes it in rotations
    (jquesnelle/yarn#60). The upper limit d - 1, not d/2 - 1, is the published code's.

    Raises:
        UsageError: beta_fast is not above beta_slow.
    """
    if parameters.beta_fast <= parameters.beta_slow:
        raise UsageError(
            f"beta_fast={parameters.beta_fast:g} is not above beta_slow={parameters.beta_slow:g}",
            "beta_fast counts rotations of the fast pairs and must be the larger (defaults: 32 and 1)",
        )
    spectrum, length = request.spectrum, request.original_length
    low = spectrum.pair_at_rotations(parameters.beta_fast, length)
    high = spectrum.pair_at_rotations(parameters.beta_slow, length)
    if parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spectrum.rotated_dims - 1)
    width = high - low if high != low else 0.001
    return tuple(clip((i - low) / width, 0.0, 1.0) for i in range(spectrum.pairs))


def form(parameters: Parameters, request: Request) -> RopeForm:
    """The `yarn` type with these parameters."""
    keys: dict[str, float | int | bool | list[float]] = {
        "factor": request.scale,
        "original_max_position_embeddings": request.original_length,
        "beta_fast": parameters.beta_fast,
        "beta_slow": parameters.beta_slow,
    }
    if not parameters.truncate:
        keys["truncate"] = False
    return RopeForm("yarn", keys)


def compute(parameters: Parameters, request: Request) -> Rotation:
    """1/lambda_i = g_i/s + (1 - g_i), a = 0.1 ln s + 1 (2309.00071, section 3.2 to 3.4)."""
    divisors = blend_frequencies(ramp(parameters, request), request.scale)
    return Rotation(divisors, temperature(request.scale), form(parameters, request))


def warnings(parameters: Parameters, _request: Request) -> tuple[str, ...]:
    """What a static YaRN costs, and which engines ignore `truncate: false`."""
    lines = ["YaRN is static: short prompts pay for it too; choose the smallest target that you need"]
    if not parameters.truncate:
        lines.append("truncate=false is ignored by llama.cpp, by mlx-lm and by vLLM before 0.11")
    return tuple(lines)


METHOD = Method(
    name="yarn",
    title="YaRN",
    reference="2309.00071 section 3.2-3.4",
    summary="Keeps pairs that turn more than beta_fast times in L0, divides those below beta_slow by s, ramps between,"
    " and sharpens attention by a^2 = (0.1 ln s + 1)^2.",
    evidence=(
        "Llama-2-7B s=32, 400+200 steps: Proof-pile perplexity 2.37 at 128k, passkey 99.4 % (tables 2 and 5)",
        "short prompts suffer: Arena-Hard-v2 39 -> 26.5 at a static factor of 4 (QwenLM/Qwen3#1567)",
    ),
    needs_training="works untuned to about s=4; 400 to 600 steps in the paper",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
