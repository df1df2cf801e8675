"""Dynamic NTK that a cache cannot break: the base follows each query's position, which needs custom modeling code."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import CustomCode, RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """The parameters of dynamic NTK with an exact cache."""

    factor: float = parameter(1.0, "slope of the scale with the length l; 1 gives s = l/L0")
    steps: int = parameter(8, "how many times the base grows while the length grows by L0", kind="count")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """b(l) = b (factor s - (factor - 1))^(d/(d-2)), s = max(1, ceil(steps l / L0)/steps), for the query that is the
    l-th token (2309.00071, 3.3).

    The divisors returned are those of the config, 1 throughout: they hold up to L0, and the modeling file's tables
    beyond.

    Raises:
        UnsupportedError: a scaling is in force, or fewer than two pairs.
        UsageError: no step.
    """
    if not request.spectrum.is_plain:
        raise UnsupportedError(
            "dynamic NTK can't be multiplied onto a scaling already in force",
            "restart from the pre-training length with --original-length, or use a static method",
        )
    if request.spectrum.rotated_dims < 4:
        raise UnsupportedError(
            f"dynamic NTK is undefined for {request.spectrum.rotated_dims} rotated dimensions",
            "use --method pi or abf",
        )
    if parameters.steps < 1:
        raise UsageError("dynamic-ntk-exact: steps=0 never changes the base", "give steps a number like 8")
    code = CustomCode(
        "dynamic_ntk_exact",
        {"original_length": request.original_length, "steps": parameters.steps, "factor": parameters.factor},
    )
    plain = (1.0,) * request.spectrum.pairs
    return Rotation(plain, form=RopeForm("default"), length_dependent=True, code=code)


def warnings(parameters: Parameters, request: Request) -> tuple[str, ...]:
    """How it differs from the config-only form, and where it runs."""
    return (
        f"up to {request.original_length} tokens the model is unchanged; beyond, each query's base follows its own"
        f" position in steps of 1/{parameters.steps} of that, so that one pass and cached decoding agree",
        "dynamic-ntk, without code, takes one base for a whole forward pass and never re-rotates cached keys; at the"
        " last position both define the same table",
        "max_position_embeddings states the target, and nothing stops at it: the base keeps growing",
    )


METHOD = Method(
    name="dynamic-ntk-exact",
    title="Dynamic NTK, exact with a cache",
    reference="2309.00071 section 3.3 (first posted by u/emozilla); keys re-rotated as 2309.00071 asks of a cache",
    summary="The NTK-aware base follows each query's position; short prompts are left exactly as they were.",
    evidence=("Llama-2-7B, dynamic NTK with YaRN: PG19 41.57 at 64k (2402.17463, table 1)",),
    needs_training="no",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
    needs_code=True,
    needs="custom code",
    costs=(
        "loads with trust_remote_code in transformers only: vLLM, SGLang, llama.cpp, TGI and mlx-lm can't serve it",
        "rotated keys are kept beside the cache, half as much memory again, and rotated anew at every step",
    ),
)
