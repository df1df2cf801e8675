"""Giraffe's bases: the slow pairs are slowed by a power law, or cut off altogether."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import UNROTATED, Rotation

# Of the published code: slow pairs share 1/16 of the cut-off frequency; below 1/8 of it they stop.
_SHARED = 16.0
_STOPPED = 8.0
_LARGEST_POWER = 8.0
_INTERPOLATE = "divide every frequency by this first, as the published code can; 1: don't"


@dataclass(frozen=True)
class PowerParameters:
    """The power basis's parameters."""

    k: float = parameter(0.5, "exponent: 0 would leave RoPE as it is, larger slows more")
    interpolate: float = parameter(1.0, _INTERPOLATE)


@dataclass(frozen=True)
class TruncatedParameters:
    """The truncated basis's parameters."""

    window: float | None = parameter(None, "wavelength in tokens up to which pairs are kept; none: L0", kind="number")
    interpolate: float = parameter(1.0, _INTERPOLATE)


def compute_power(parameters: PowerParameters, request: Request) -> Rotation:
    """f'_i = f_i (1 - 2i/d)^k, that is lambda_i = (1 - 2i/d)^(-k); a = 1; s plays no part.

    Source: 2308.10882, power scaling; abacusai/Long-Context:python/models/interpolate.py.

    Raises:
        UsageError: a k that stops whole pairs.
    """
    if parameters.k > _LARGEST_POWER:
        raise UsageError(
            f"giraffe-power: k={parameters.k:g} stops the slow pairs", f"give k of at most {_LARGEST_POWER:g}"
        )
    pairs = request.spectrum.pairs
    return Rotation(tuple(parameters.interpolate * (1 - i / pairs) ** -parameters.k for i in range(pairs)))


def compute_truncated(parameters: TruncatedParameters, request: Request) -> Rotation:
    """f'_i = f_i from 2 pi/T up; 2 pi/(16 T) from an eighth of that up; below, the pair stops; a = 1; no s.

    Source: 2308.10882, truncated basis; abacusai/Long-Context:python/models/interpolate.py `truncate_frequency`.
    """
    window = parameters.window or request.original_length
    cutoff = 2 * math.pi / window
    divisors = []
    for original in request.spectrum.frequencies:
        frequency = original / parameters.interpolate
        if frequency >= cutoff:
            divisors.append(parameters.interpolate)
        elif frequency >= cutoff / _STOPPED:
            divisors.append(original * _SHARED / cutoff)
        else:
            divisors.append(UNROTATED)
    return Rotation(tuple(divisors))


POWER = Method(
    name="giraffe-power",
    title="Giraffe's power basis",
    reference="2308.10882 (power scaling); abacusai/Long-Context:python/models/interpolate.py",
    summary="Multiplies frequency i by (1 - 2i/d)^k: fast pairs stay, the slowest nearly stop.",
    evidence=("LLaMA-13B fine-tuned: below linear scaling on LongChat-Lines (2308.10882)",),
    costs=(
        "L' sets nothing but the declared length: k alone decides how far it reaches",
        "its default k=0.5 is an example, not a published optimum: the paper's code takes k from the command line",
    ),
    needs="calibration",
    needs_training="yes",
    parameters=PowerParameters,
    compute=compute_power,
)
TRUNCATED = Method(
    name="giraffe-truncated",
    title="Giraffe's truncated basis",
    reference="2308.10882 (truncated basis); abacusai/Long-Context:python/models/interpolate.py truncate_frequency",
    summary="Keeps pairs whose wavelength fits the window, gives the next a common slow frequency, stops the rest.",
    evidence=(
        "good perplexity beyond the trained length, weak retrieval: the paper's example of a perplexity that misleads",
    ),
    costs=(
        "L' sets nothing but the declared length: the window decides",
        "divisors are not monotone: several pairs share one frequency",
    ),
    needs="calibration",
    needs_training="yes",
    parameters=TruncatedParameters,
    compute=compute_truncated,
)
METHODS = (POWER, TRUNCATED)
