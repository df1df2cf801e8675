"""The rotation that one rope dict computes, formula by formula after transformers:modeling_rope_utils.py.

The second derivation of each formula, independent of `ctxforge.rope.methods`: see `reader`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctxforge.errors import CheckpointError
from ctxforge.rope import fields
from ctxforge.rope.types import UNROTATED, RopeForm, Rotation


def read_factor(chosen: Mapping[str, Any]) -> float:
    """The dict's `factor`, at least 1."""
    factor = fields.real(chosen, "factor", None)
    if factor < 1:
        raise CheckpointError(f"config.json: rope factor {factor:g} is below 1", "repair config.json")
    return factor


def read_optional_factor(chosen: Mapping[str, Any]) -> float:
    """The dict's `factor`, 1 when it has none (the type `proportional`)."""
    return read_factor(chosen) if chosen.get("factor") is not None else 1.0


def read_proportional(chosen: Mapping[str, Any], d: int) -> Rotation:
    """The type `proportional` (p-RoPE, 2410.06205): the first pairs at exponents over the whole head, the rest still.

    transformers:modeling_rope_utils.py `_compute_proportional_rope_parameters`: int(p * d // 2) pairs rotate.
    """
    factor = read_optional_factor(chosen)
    proportion = fields.real(chosen, "partial_rotary_factor", 1.0, low=-1e-9)
    if proportion > 1:
        raise CheckpointError(f"config.json: a rotated fraction of {proportion:g} is above 1", "repair config.json")
    rotated = int(max(proportion, 0.0) * d // 2)
    return Rotation((factor,) * rotated + (UNROTATED,) * (d // 2 - rotated))


def read_alpha(chosen: Mapping[str, Any], d: int) -> Rotation:
    """HunYuan's `dynamic` with `alpha`: a fixed base of base * alpha^(d/(d-2)).

    transformers:models/hunyuan_v1_dense/modeling_hunyuan_v1_dense.py `compute_ntk_alpha_rope_parameters`.
    """
    alpha = fields.real(chosen, "alpha", None)
    return Rotation(tuple(alpha ** (2 * i / (d - 2)) for i in range(d // 2)))


def read_dynamic(chosen: Mapping[str, Any], d: int) -> Rotation:
    """Dynamic NTK. Up to max_position_embeddings the table is the plain one; past it, it follows the length."""
    factor = read_factor(chosen)
    return Rotation((1.0,) * (d // 2), form=RopeForm("dynamic", {"factor": factor}), length_dependent=True)


def read_llama3(chosen: Mapping[str, Any], d: int, base: float, original: int) -> Rotation:
    """The type `llama3`: wavelengths compared with original/low and original/high."""
    factor = read_factor(chosen)
    low = fields.real(chosen, "low_freq_factor", None)
    high = fields.real(chosen, "high_freq_factor", None)
    if high < low:
        raise CheckpointError("config.json: high_freq_factor is below low_freq_factor", "repair config.json")
    divisors = []
    for i in range(d // 2):
        frequency = base ** (-2 * i / d)
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low or high == low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(frequency / ((1 - smooth) * frequency / factor + smooth * frequency))
    return Rotation(tuple(divisors))


def read_yarn(
    chosen: Mapping[str, Any], d: int, base: float, original: int, longest: int, *, truncate: object
) -> Rotation:
    """The type `yarn`; `truncate` None stands for a reader that always rounds the ramp."""
    factor = read_factor(chosen) if chosen.get("factor") is not None else longest / original
    temperature = fields.real(chosen, "attention_factor", -1.0)
    if temperature < 0:
        numerator = fields.real(chosen, "mscale", 0.0, low=-1.0)
        denominator = fields.real(chosen, "mscale_all_dim", 0.0, low=-1.0)
        paired = bool(numerator and denominator)
        temperature = mscale(factor, numerator) / mscale(factor, denominator) if paired else mscale(factor, 1.0)
    fast = fields.real(chosen, "beta_fast", 32.0)
    slow = fields.real(chosen, "beta_slow", 1.0)
    bounds = [d * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(base)) for beta in (fast, slow)]
    if truncate is None or truncate is True:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], d - 1)
    if low == high:
        high += 0.001
    divisors = []
    for i in range(d // 2):
        kept = 1 - max(0.0, min(1.0, (i - low) / (high - low)))
        divisors.append(1 / ((1 - kept) / factor + kept))
    return Rotation(tuple(divisors), temperature, RopeForm("yarn", {"factor": factor}))


def mscale(factor: float, coefficient: float) -> float:
    """m(s) = 0.1 c ln s + 1 for s > 1 (2309.00071, eq. 22, with DeepSeek's coefficient)."""
    return 1.0 if factor <= 1 else 0.1 * coefficient * math.log(factor) + 1.0


def read_longrope(chosen: Mapping[str, Any], d: int, original: int, factor: float, *, past_original: bool) -> Rotation:
    """The type `longrope`: lists of divisors, the long one in use when `past_original`."""
    short = _factors(chosen, "short_factor", d)
    long = _factors(chosen, "long_factor", d)
    temperature = fields.real(chosen, "attention_factor", -1.0)
    if temperature < 0:
        temperature = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rotation(long if past_original else short, temperature, length_dependent=short != long)


def _factors(chosen: Mapping[str, Any], key: str, d: int) -> tuple[float, ...]:
    """One list of divisors, from the fastest pair to the slowest."""
    factors = fields.reals(chosen, key, d // 2)
    # Rounded wavelengths (Resonance) may fall by some percent; no list falls by half.
    if factors[0] > 1.5 * factors[-1]:
        raise CheckpointError(
            f"config.json: {key} divides the fastest pair by {factors[0]:g} and the slowest by {factors[-1]:g}: it runs"
            " in the wrong order",
            "list the factors from the fastest pair to the slowest",
        )
    return factors
