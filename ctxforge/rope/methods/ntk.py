"""NTK-aware scaling: a larger base, so that the lowest pair is interpolated by s and the highest untouched."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError
from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """NTK-aware scaling has none."""


def compute(_parameters: Parameters, request: Request) -> Rotation:
    """b' = b s^(d/(d-2)), that is lambda_i = s^(2i/(d-2)); a = 1 (2309.00071, section 3.1).

    Raises:
        UnsupportedError: fewer than two pairs, where the exponent is undefined.
    """
    d, scale = request.spectrum.rotated_dims, request.scale
    if d < 4:
        raise UnsupportedError(f"NTK-aware scaling is undefined for {d} rotated dimensions", "use --method pi or abf")
    base = request.spectrum.base * scale ** (d / (d - 2))
    divisors = tuple(scale ** (2 * i / (d - 2)) for i in range(d // 2))
    return Rotation(divisors, form=RopeForm("default", {"rope_theta": base}))


METHOD = Method(
    name="ntk",
    title="NTK-aware scaling",
    reference="2309.00071 section 3.1 (first posted by u/bloc97)",
    summary="Raises the base so that the slowest pair turns s times slower and the fastest is untouched.",
    evidence=(
        "the most portable method: every engine reads rope_theta",
        "middle pairs are interpolated by less than s, so the usable length falls short of L': ask for more",
    ),
    needs_training="optional",
    parameters=Parameters,
    compute=compute,
)
