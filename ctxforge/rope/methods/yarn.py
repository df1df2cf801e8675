"""YaRN: interpolate slow pairs, keep fast ones, ramp between, and raise the temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods import critical
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.spectrum import blend_frequencies, clip
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """YaRN's parameters."""

    beta_fast: float = parameter(32.0, "pairs that turn more often than this within L0 are left alone")
    beta_slow: float = parameter(1.0, "pairs that turn less often than this within L0 are interpolated by s")
    truncate: bool = parameter(True, "round the ramp's ends to whole pairs, as the published code does")
    critical_pair: int | None = parameter(None, critical.PAIR, kind="count")
    critical_shift: int = parameter(0, critical.SHIFT, kind="count")


def temperature(scale: float) -> float:
    """a = 0.1 ln s + 1 (2309.00071, eq. 22, as sqrt(1/t))."""
    return 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0


def ends(parameters: Parameters, request: Request) -> tuple[float, float]:
    """The ramp's ends in pairs: lo = c(beta_fast), hi = c(beta_slow) or the critical pair where one is given.

    The upper limit d - 1, not d/2 - 1, is the published code's.

    Raises:
        UsageError: beta_fast is not above beta_slow, or the critical pair is not above the ramp's start.
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
    moved = critical.critical_pair("yarn", parameters.critical_pair, parameters.critical_shift, request)
    if moved is None:
        return low, high
    if moved <= low:
        raise UsageError(
            f"the critical pair {moved} is not above the ramp's start at pair {low:g}",
            "move it less, or raise beta_fast so that the ramp starts earlier",
        )
    return low, moved


def ramp(parameters: Parameters, request: Request) -> tuple[float, ...]:
    """Interpolation weights g_i = clip((i - lo)/(hi - lo), 0, 1) between the ramp's ends.

    The ramp is linear in the pair index, as in every implementation; the paper writes it in rotations
    (jquesnelle/yarn#60): see the method `yarn-paper`.

    Raises:
        UsageError: see `ends`.
    """
    low, high = ends(parameters, request)
    width = high - low if high != low else 0.001
    return tuple(clip((i - low) / width, 0.0, 1.0) for i in range(request.spectrum.pairs))


def form(parameters: Parameters, request: Request) -> RopeForm:
    """The `yarn` type with these parameters.

    A critical pair P is expressed by the beta_slow whose ramp ends there: turns of pair P, or of P - 1/2 where readers
    round up, so that no rounding error decides.
    """
    slow = parameters.beta_slow
    moved = critical.critical_pair("yarn", parameters.critical_pair, parameters.critical_shift, request)
    if moved is not None:
        index = moved - 0.5 if parameters.truncate else moved
        slow = request.spectrum.plain_turns(index, request.original_length)
    keys: dict[str, float | int | bool | list[float]] = {
        "factor": request.scale,
        "original_max_position_embeddings": request.original_length,
        "beta_fast": parameters.beta_fast,
        "beta_slow": slow,
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
    reference="2309.00071 section 3.2-3.4; critical pair: 2502.20082 section 4.3",
    summary="Keeps pairs that turn more than beta_fast times in L0, divides those below beta_slow by s, ramps between,"
    " and sharpens attention by a^2 = (0.1 ln s + 1)^2.",
    evidence=(
        "Llama-2-7B s=32, 400+200 steps: Proof-pile perplexity 2.37 at 128k, passkey 99.4 % (tables 2 and 5)",
        "the ramp's end moved to d_rcd (critical_shift=5), 10B tokens: RULER-128k of LLaMA3-8B 49.39 -> 71.46, of"
        " Phi3-mini 39.37 -> 44.39 (2502.20082, table 5)",
        "Mistral's YaRN checkpoints were trained with beta_fast=128 and beta_slow=2"
        " (jquesnelle/yarn:scaled_rope/modeling_mistral_yarn.py)",
    ),
    costs=(
        "short prompts suffer: Arena-Hard-v2 39 -> 26.5 at a static factor of 4 (QwenLM/Qwen3#1567)",
        "Llama-2-7B at s=32: MMLU 43.8 -> 41.7, ARC-c 53.1 -> 52.1 (table 3)",
        "with critical_pair the emitted beta_slow is not 1: an engine that fixes the betas computes plain YaRN",
    ),
    needs="nothing",
    needs_training="works untuned to about s=4; 400 to 600 steps in the paper",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
