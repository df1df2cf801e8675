"""Dynamic NTK: the NTK-aware base follows the running length."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """Dynamic NTK's parameters."""

    factor: float = parameter(1.0, "slope of the scale with the running length l; 1 gives s = l/L0 exactly")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """b(l) = b (factor l/L0 - (factor - 1))^(d/(d-2)) for l > L0; divisors are those at l = L' (2309.00071, 3.3).

    Raises:
        UnsupportedError: a scaling is in force, or fewer than two pairs.
    """
    d = request.spectrum.rotated_dims
    if not request.spectrum.is_plain:
        raise UnsupportedError(
            "dynamic NTK can't be multiplied onto a scaling already in force",
            "restart from the pre-training length with --original-length, or use a static method",
        )
    if d < 4:
        raise UnsupportedError(f"dynamic NTK is undefined for {d} rotated dimensions", "use --method pi or abf")
    growth = parameters.factor * request.scale - (parameters.factor - 1)
    divisors = tuple(growth ** (2 * i / (d - 2)) for i in range(d // 2))
    form = RopeForm("dynamic", {"factor": parameters.factor})
    return Rotation(divisors, form=form, length_dependent=True)


def warnings(_parameters: Parameters, _request: Request) -> tuple[str, ...]:
    """Dynamic NTK is not one function of the tokens: cached keys keep the base of the length they were made at."""
    return (
        "dynamic NTK is not reproducible: cached keys are not re-rotated, so a full pass and cached decoding differ"
        " (huggingface/transformers#25104); prefer a static method, or dynamic-ntk-exact, which needs custom code",
        "vLLM and SGLang make `dynamic` static, llama.cpp drops it",
        "max_position_embeddings stays at the trained length, where this type expects it",
    )


METHOD = Method(
    name="dynamic-ntk",
    title="Dynamic NTK",
    reference="2309.00071 section 3.3 (first posted by u/emozilla)",
    summary="Recomputes the NTK-aware base from the running length at each forward pass.",
    evidence=("Llama-2-7B, dynamic NTK with YaRN: PG19 41.57 at 64k (2402.17463, table 1)",),
    costs=(
        "not reproducible: a full pass and cached decoding differ (huggingface/transformers#25104)",
        "engines disagree: vLLM and SGLang make it static, llama.cpp drops it",
    ),
    aliases=("dynamic",),
    needs_training="no",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
