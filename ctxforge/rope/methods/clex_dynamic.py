"""CLEX as it was trained: the learned frequencies follow the length, which needs custom modeling code."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.methods.factor_lists import check_list
from ctxforge.rope.types import CustomCode, RopeForm, Rotation

# The first table must be the plain one: exported lists carry float32's rounding, and no more.
_SAME = 1e-4


@dataclass(frozen=True)
class Parameters:
    """Dynamic CLEX's parameter."""

    frequencies: tuple[float, ...] | None = parameter(
        None,
        "radians per token at the scales t = 1, 2, 3, ... one table after the other, d/2 numbers each: a list, or a"
        " JSON or CSV file",
        kind="numbers",
    )


def compute(parameters: Parameters, request: Request) -> Rotation:
    """exp(z(t)) with t = max(1, ceil(l / L0)) for the query that is the l-th token (2310.16450, section 3).

    dz/dt = g(z, t) is learned with the model's weights, so nothing can be computed without them; inference takes whole
    t only (DAMO-NLP-SG/CLEX:CLEX/clex_layer.py), so a table for each t that the target reaches says all of it.
    `ctxforge.rope.clex_ode.clex_frequencies` computes them from a CLEX checkpoint's two projections.

    Raises:
        UnsupportedError: a scaling is in force.
        UsageError: no tables, too few for the target, or a first one that is not the model's own.
    """
    spectrum, numbers = request.spectrum, parameters.frequencies
    if not spectrum.is_plain:
        raise UnsupportedError(
            "dynamic CLEX can't be multiplied onto a scaling already in force",
            "restart from the pre-training length with --original-length",
        )
    remedy = "export them from the CLEX checkpoint (ctxforge.rope.clex_ode) and pass --param frequencies=FILE"
    if numbers is None:
        raise UsageError("clex-dynamic needs frequencies: they are learned with the weights", remedy)
    pairs = spectrum.pairs
    if len(numbers) % pairs:
        raise UsageError(f"clex-dynamic: {len(numbers)} frequencies are no whole tables of {pairs} pairs", remedy)
    tables = [numbers[start : start + pairs] for start in range(0, len(numbers), pairs)]
    wanted = math.ceil(request.target_length / request.original_length)
    if len(tables) < wanted:
        raise UsageError(
            f"clex-dynamic: {len(tables)} tables reach {len(tables) * request.original_length} tokens, the target"
            f" needs {wanted}",
            f"give a table for each of t = 1 to {wanted}, or a nearer target",
        )
    for table in tables:
        check_list("clex-dynamic", "frequencies", table, pairs, monotone=False)
    if any(abs(given / own - 1) > _SAME for given, own in zip(tables[0], spectrum.frequencies, strict=True)):
        raise UsageError("clex-dynamic: the first table is not the model's own, which t = 1 stands for", remedy)
    code = CustomCode(
        "clex_dynamic", {"original_length": request.original_length, "steps": 1, "tables": [float(n) for n in numbers]}
    )
    return Rotation((1.0,) * pairs, form=RopeForm("default"), length_dependent=True, code=code)


def warnings(_parameters: Parameters, request: Request) -> tuple[str, ...]:
    """The weights must be a CLEX model's."""
    return (
        "these frequencies fit only the CLEX model that they were trained with",
        f"up to {request.original_length} tokens the model is unchanged; beyond, each query's t follows its own"
        " position, so that one pass and cached decoding agree; past the last table, it stays in force",
    )


METHOD = Method(
    name="clex-dynamic",
    title="CLEX",
    reference="2310.16450 section 3; DAMO-NLP-SG/CLEX:CLEX/clex_layer.py",
    summary="Takes the frequencies of a trained CLEX model at every whole scale, and each query those of its position.",
    evidence=(
        "CLEX-7B trained at 16k, perplexity 5.88, 5.68, 5.52, 5.55, 5.64 at 4k to 64k; YaRN s=32 6.61 to 6.22"
        " (2310.16450), with one t for a whole text",
    ),
    costs=(
        "loads with trust_remote_code in transformers only: vLLM, SGLang, llama.cpp, TGI and mlx-lm can't serve it",
        "checkpoints with log_scale also scale the logits by the length: that is left out",
        "the source must be a CLEX checkpoint; its ode_up_proj and ode_down_proj are dropped with its code",
        "rotated keys are kept beside the cache, half as much memory again, and rotated anew at every multiple of L0",
    ),
    needs="custom code",
    needs_training="the source is a model trained with CLEX",
    experimental=True,
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
    needs_code=True,
)
