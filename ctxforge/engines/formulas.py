"""Rotary tables from a rope dict, the formulas that engines share.

Each engine's reader decides which keys count; what is left to compute is here. The frequencies of yarn and llama3 come
from `ctxforge.rope.formulas`, the second derivation after transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ctxforge.engines.types import Rotary, Spec
from ctxforge.errors import UnsupportedError
from ctxforge.rope import fields
from ctxforge.rope.formulas import read_factor, read_llama3, read_longrope, read_yarn

YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}
FOLLOWS_LENGTH = "follows the running length (dynamic NTK)"
FOLLOWS_LISTS = "changes from the short to the long list past the original length"


def frequencies(base: float, dims: int, divisors: Iterable[float]) -> tuple[float, ...]:
    """Radians per token: base^(-2i/d) / divisor."""
    return tuple(base ** (-2 * i / dims) / divisor for i, divisor in enumerate(divisors))


def plain(spec: Spec, *, base: float | None = None, dims: int | None = None, scaling: str = "no scaling") -> Rotary:
    """The table without any scaling."""
    base, dims = spec.base if base is None else base, spec.dims if dims is None else dims
    return Rotary(dims, base, frequencies(base, dims, [1.0] * (dims // 2)), scaling=scaling)


def linear(spec: Spec) -> Rotary:
    """Every frequency divided by `factor`."""
    factor = read_factor(spec.values)
    return Rotary(
        spec.dims, spec.base, frequencies(spec.base, spec.dims, [factor] * (spec.dims // 2)), scaling="linear"
    )


def ntk(spec: Spec, growth: float, scaling: str) -> Rotary:
    """A fixed table with base b * growth^(d/(d-2))."""
    base = spec.base * growth ** (spec.dims / (spec.dims - 2)) if spec.dims > 2 else spec.base
    return plain(spec, base=base, scaling=scaling)


def dynamic(spec: Spec) -> Rotary:
    """A table that follows the running length; plain up to max_position_embeddings."""
    read_factor(spec.values)
    table = plain(spec, scaling="dynamic")
    return Rotary(table.dims, table.base, table.frequencies, scaling="dynamic", follows=FOLLOWS_LENGTH)


def llama3(spec: Spec, *, original: int | None = None) -> Rotary:
    """The type llama3."""
    rotation = read_llama3(spec.values, spec.dims, spec.base, original or spec.original)
    return Rotary(spec.dims, spec.base, frequencies(spec.base, spec.dims, rotation.divisors), scaling="llama3")


def yarn(
    spec: Spec,
    temperature: float,
    *,
    truncate: bool,
    factor: float | None = None,
    original: int | None = None,
    betas: bool = True,
) -> Rotary:
    """The type yarn at a given temperature.

    Args:
        spec: the dict.
        temperature: what this engine makes of the temperature keys.
        truncate: whether the ramp's ends are rounded.
        factor: instead of the dict's.
        original: instead of the dict's.
        betas: False for readers that always use 32 and 1.
    """
    values = {
        "factor": yarn_factor(spec) if factor is None else factor,
        "attention_factor": temperature,
        **{key: spec.values[key] for key in YARN_DEFAULTS if betas and spec.values.get(key) is not None},
    }
    rotation = read_yarn(values, spec.dims, spec.base, original or spec.original, spec.longest, truncate=truncate)
    return Rotary(spec.dims, spec.base, frequencies(spec.base, spec.dims, rotation.divisors), temperature, "yarn")


def yarn_factor(spec: Spec) -> float:
    """The dict's factor, or max_position_embeddings over the original length where it is absent."""
    return read_factor(spec.values) if spec.values.get("factor") is not None else spec.longest / spec.original


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """0.1 * mscale * ln(factor) + 1 (2309.00071, equation 22, with DeepSeek's mscale)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def lists(spec: Spec, temperature: float, *, long: bool, original: int | None = None, switches: bool = False) -> Rotary:
    """The type longrope with one of its lists, or switching between the two."""
    short_list = fields.reals(spec.values, "short_factor", spec.dims // 2)
    long_list = fields.reals(spec.values, "long_factor", spec.dims // 2)
    rotation = read_longrope(
        {**spec.values, "attention_factor": temperature}, spec.dims, original or spec.original, 1.0, past_original=long
    )
    follows = FOLLOWS_LISTS if switches and short_list != long_list else ""
    scaling = "longrope" if short_list == long_list else f"the {'long' if long else 'short'} list"
    found = frequencies(spec.base, spec.dims, rotation.divisors)
    return Rotary(spec.dims, spec.base, found, temperature, scaling, follows)


def passed_over(spec: Spec, used: float, line: str) -> tuple[str, ...]:
    """`line` where the dict gives a temperature and the reader uses another; nothing otherwise."""
    given = spec.values.get("attention_factor")
    return () if given is None or abs(fields.real(spec.values, "attention_factor", None) - used) < 1e-9 else (line,)


def longrope_temperature(scale: float, original: int) -> float:
    """sqrt(1 + ln s / ln L0) (2402.13753, section 4)."""
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def proportional(spec: Spec, *, fraction: float | None = None, factor: float | None = None) -> Rotary:
    """The type proportional: the first p of the pairs rotate with exponents over the whole head, the others don't."""
    share = fields.real(spec.values, "partial_rotary_factor", 1.0, low=-1.0) if fraction is None else fraction
    if not 0 <= share <= 1:
        raise UnsupportedError(f"partial_rotary_factor {share:g} is outside 0 ... 1", "repair config.json")
    divisor = fields.real(spec.values, "factor", 1.0) if factor is None else factor
    turning = int(share * spec.dims // 2)
    found = frequencies(spec.base, spec.dims, [divisor] * turning) + (0.0,) * (spec.dims // 2 - turning)
    return Rotary(spec.dims, spec.base, found, scaling="proportional")
