"""Adjusted base frequency: the base is set outright."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """ABF's parameters."""

    base: float = parameter(500000.0, "the new base; 2309.16039 takes 500 000 for 4k -> 32k")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """b' = base, that is lambda_i = (b'/b)^(2i/d); a = 1 (2309.16039, section 4.1).

    Raises:
        UsageError: the new base is not above the model's own.
    """
    spectrum = request.spectrum
    if parameters.base <= spectrum.base:
        raise UsageError(
            f"abf: base={parameters.base:g} is not above the model's own base {spectrum.base:g}",
            "give a larger one: --param base=...",
        )
    ratio = parameters.base / spectrum.base
    divisors = tuple(ratio ** (2 * i / spectrum.rotated_dims) for i in range(spectrum.pairs))
    return Rotation(divisors, form=RopeForm("default", {"rope_theta": parameters.base}))


def warnings(parameters: Parameters, request: Request) -> tuple[str, ...]:
    """The lower bound on the base that 2405.14591 fits: b >= 0.0424 L'^1.628."""
    bound = 0.0424 * request.target_length**1.628
    lines = ["ABF is published with continual training on billions of tokens; untuned it is close to NTK-aware scaling"]
    if parameters.base < bound:
        lines.append(
            f"base {parameters.base:g} is below {bound:.3g}, the fitted lower bound for {request.target_length} tokens"
            " (2405.14591)"
        )
    return tuple(lines)


METHOD = Method(
    name="abf",
    title="Adjusted base frequency (ABF)",
    reference="2309.16039 section 4.1",
    summary="Sets the base to a given value.",
    evidence=(
        "Llama-2-7B with 80B tokens at 32k: Books 6.323 against PI's 6.341 (table 5)",
        "the only one of the four compared that keeps first-sentence retrieval to 32k",
    ),
    costs=("untuned it is close to NTK-aware scaling; the published gains took 80B to 400B tokens",),
    needs="calibration",
    needs_training="yes, long",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
