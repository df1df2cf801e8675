"""PoSE's revised YaRN: the ramp blends divisors instead of frequencies."""

from __future__ import annotations

from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.methods.yarn import Parameters, ramp, temperature
from ctxforge.rope.types import Rotation


def compute(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = g_i s + (1 - g_i), g_i YaRN's interpolation weights; a = 0.1 ln s + 1.

    Source: dwzhu-pku/PoSE:src/my_modeling_llama.py `revised_yarn`; discussed in jquesnelle/yarn#24.

    Raises:
        UsageError: see YaRN's ramp.
    """
    divisors = tuple(g * request.scale + (1.0 - g) for g in ramp(parameters, request))
    return Rotation(divisors, temperature(request.scale))


METHOD = Method(
    name="pose-yarn",
    title="YaRN as revised by PoSE",
    reference="dwzhu-pku/PoSE:src/my_modeling_llama.py revised_yarn (2309.10400)",
    summary="YaRN with wavelengths blended along the ramp: middle pairs are interpolated more than YaRN does.",
    evidence=(
        "LLaMA-7B trained with PoSE on 2k windows, PG19 at 128k: 11.33 against 31.2 for linear and 34.8 for NTK"
        " (2309.10400, table 2)",
    ),
    costs=(
        "not the function of the type `yarn`: a PoSE checkpoint read as yarn is silently another model",
        "static: short prompts pay for it too",
    ),
    needs="calibration",
    needs_training="1000 steps on 2k windows with PoSE positions in the paper",
    parameters=Parameters,
    compute=compute,
)
