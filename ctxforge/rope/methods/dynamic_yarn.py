"""Dynamic YaRN: the scale follows each query's position, which needs custom modeling code."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.rope.methods import yarn
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import CustomCode, RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """Dynamic YaRN's parameters."""

    beta_fast: float = parameter(32.0, "pairs that turn more often than this within L0 are left alone")
    beta_slow: float = parameter(1.0, "pairs that turn less often than this within L0 are interpolated by s")
    truncate: bool = parameter(True, "round the ramp's ends to whole pairs, as the published code does")
    steps: int = parameter(8, "how many times the scale grows while the length grows by L0", kind="count")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """YaRN with s(l) = max(1, ceil(steps l / L0)/steps) for the query that is the l-th token (2309.00071).

    The divisors returned are those of the config, 1 throughout: they hold up to L0, and the modeling file's tables
    beyond. The ramp g does not depend on s, so it is computed here and handed over.

    Raises:
        UnsupportedError: a scaling is in force.
        UsageError: no step, or beta_fast not above beta_slow.
    """
    if not request.spectrum.is_plain:
        raise UnsupportedError(
            "dynamic YaRN can't be multiplied onto a scaling already in force",
            "restart from the pre-training length with --original-length, or use a static method",
        )
    if parameters.steps < 1:
        raise UsageError("dynamic-yarn: steps=0 never changes the scale", "give steps a number like 8")
    static = yarn.Parameters(parameters.beta_fast, parameters.beta_slow, parameters.truncate)
    code = CustomCode(
        "dynamic_yarn",
        {
            "original_length": request.original_length,
            "steps": parameters.steps,
            "ramp": list(yarn.ramp(static, request)),
        },
    )
    plain = (1.0,) * request.spectrum.pairs
    return Rotation(plain, form=RopeForm("default"), length_dependent=True, code=code)


def warnings(parameters: Parameters, request: Request) -> tuple[str, ...]:
    """How it differs from the published class, and where it runs."""
    return (
        f"up to {request.original_length} tokens the model is unchanged; beyond, each query's scale follows its own"
        f" position in steps of 1/{parameters.steps}, so that one pass and cached decoding agree",
        "the published class takes one scale for a whole forward pass and never re-rotates cached keys, so its results"
        " depend on how a text was fed; at the last position both define the same table",
        "max_position_embeddings states the target, and nothing stops at it: the scale keeps growing",
    )


METHOD = Method(
    name="dynamic-yarn",
    title="Dynamic YaRN",
    reference="2309.00071 section 3.3 and 3.4; jquesnelle/yarn:scaled_rope/LlamaDynamicYaRNScaledRotaryEmbedding.py",
    summary="YaRN whose scale and temperature follow each query's position; short prompts are left exactly as they"
    " were.",
    evidence=(
        "claimed to exceed twice the trained length without a fine-tune (2309.00071, introduction)",
        "Llama-2-7B, dynamic NTK with YaRN: PG19 41.57 at 64k (2402.17463, table 1)",
    ),
    needs_training="no",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
    needs_code=True,
    needs="custom code",
    costs=(
        "loads with trust_remote_code in transformers only: vLLM, SGLang, llama.cpp, TGI and mlx-lm can't serve it",
        "all cached keys are rotated anew at every step",
    ),
)
