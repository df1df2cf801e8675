"""LongRoPE: one searched divisor a pair, given as a list."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods import yarn
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.methods.factor_lists import check_list
from ctxforge.rope.types import Rotation

FACTORS = "the divisors, one a pair: a list, or a JSON or CSV file (a rope dict's long_factor is found)"


@dataclass(frozen=True)
class Parameters:
    """LongRoPE's parameters."""

    factors: tuple[float, ...] | None = parameter(None, FACTORS, kind="numbers")
    temperature: str = parameter(
        "longrope",
        "a: longrope is sqrt(1 + ln s/ln L0), yarn is 0.1 ln s + 1, none is 1",
        choices=("longrope", "yarn", "none"),
    )
    monotone: bool = parameter(True, "refuse a list that decreases anywhere")


def temperature(policy: str, scale: float, original_length: int) -> float:
    """a by policy: `longrope` sqrt(1 + ln s/ln L0) (2402.13753, section 4), `yarn` 0.1 ln s + 1, `none` 1."""
    if policy == "none" or scale <= 1:
        return 1.0
    if policy == "yarn":
        return yarn.temperature(scale)
    return math.sqrt(1 + math.log(scale) / math.log(original_length))


def given(method: str, factors: tuple[float, ...] | None) -> tuple[float, ...]:
    """The list, or a refusal where there is none.

    Raises:
        UsageError: no list.
    """
    if factors is None:
        raise UsageError(
            f"{method} needs a list of factors: it was searched for one model at one length",
            "pass --param factors=FILE, or use a method with a formula such as yarn or mrrope-pro",
        )
    return factors


def compute(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = factors[i]; a = sqrt(1 + ln s/ln L0) (2402.13753, eq. 3 and section 4).

    Raises:
        UsageError: no list, or one of the wrong length, sign or order.
    """
    factors = given("longrope", parameters.factors)
    check_list("longrope", "factors", factors, request.spectrum.pairs, monotone=parameters.monotone)
    a = temperature(parameters.temperature, request.scale, request.original_length)
    return Rotation(factors, a)


def warnings(parameters: Parameters, request: Request) -> tuple[str, ...]:
    """A list that was searched for another scale, or that speeds pairs up."""
    lines = []
    factors = parameters.factors or (request.scale,)
    if min(factors) < 1:
        lines.append(f"the list holds {min(factors):g}: a factor below 1 makes a pair turn faster than it was trained")
    if max(factors) < request.scale:
        lines.append(
            f"no factor reaches s = {request.scale:g} (the largest is {max(factors):g}): the list looks searched for a"
            " shorter target"
        )
    return tuple(lines)


METHOD = Method(
    name="longrope",
    title="LongRoPE",
    reference="2402.13753; microsoft/LongRoPE:rope/longrope.py",
    summary="Divides each pair by its own factor, from a list that an evolutionary search left.",
    evidence=(
        "LLaMA2-7B to 2048k, fine-tuned at 128k, Proof-pile at 256k: 1.88, where YaRN-128k has 99.64 (table 5)",
        "Books3 at 2048k: 7.08 against YaRN's 8.27 and PI's 20.17 (table 9)",
        "mid-trained on 10B tokens, LLaMA3-8B, RULER-128k: 73.40 against YaRN's 49.39 (2502.20082, table 2)",
    ),
    costs=(
        "a list holds for one model and one length: search anew for another",
        "LLaMA2-7B at 2048k: MMLU 46.6 -> 43.4 or 39.6 (table 8)",
        "one list for all lengths: the switch to a short list breaks KV caches in every stock model but Phi-3's",
        "unscaled first tokens (the paper's n) need custom code and are left out",
    ),
    needs_training="8x without in the paper; 400 to 1000 steps beyond",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
