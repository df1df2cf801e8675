"""NTK-by-parts: YaRN's divisors without its temperature."""

from __future__ import annotations

from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.methods.yarn import Parameters, form, ramp
from ctxforge.rope.spectrum import blend_frequencies
from ctxforge.rope.types import Rotation


def compute(parameters: Parameters, request: Request) -> Rotation:
    """1/lambda_i = g_i/s + (1 - g_i), a = 1 (2309.00071, section 3.2)."""
    return Rotation(blend_frequencies(ramp(parameters, request), request.scale), 1.0, form(parameters, request))


METHOD = Method(
    name="ntk-by-parts",
    title="NTK-by-parts",
    reference="2309.00071 section 3.2",
    summary="YaRN's interpolation by parts with the temperature left at 1.",
    evidence=("the paper gives no separate table; it is YaRN's first half",),
    costs=("without the temperature long attention is flatter: YaRN's section 3.4 adds it for that",),
    needs_training="recommended",
    aliases=("by-parts",),
    parameters=Parameters,
    compute=compute,
)
