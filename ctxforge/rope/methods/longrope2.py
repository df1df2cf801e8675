"""LongRoPE2: searched divisors from the real critical pair on, NTK-shaped ones before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods import critical
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.methods.factor_lists import check_list
from ctxforge.rope.methods.longrope import temperature
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """LongRoPE2's parameters."""

    factors: tuple[float, ...] | None = parameter(
        None, "searched divisors, of all pairs or of those from the critical one on; none: tail * s", kind="numbers"
    )
    critical_pair: int | None = parameter(None, critical.PAIR, kind="count")
    critical_shift: int = parameter(5, critical.SHIFT, kind="count")
    tail: float = parameter(1.0, "without factors: pairs from the critical one on are divided by tail * s (1 to 2)")
    temperature: str = parameter(
        "longrope",
        "a: longrope is sqrt(1 + ln s/ln L0), yarn is 0.1 ln s + 1, none is 1",
        choices=("longrope", "yarn", "none"),
    )
    monotone: bool = parameter(True, "refuse a list that decreases anywhere")


def find_critical(parameters: Parameters, request: Request) -> int:
    """d_rcd: the pair given, or theory minus the shift, but not before the pair with ten turns within L0.

    The search looks between those two (2502.20082, algorithm 1).

    Raises:
        UsageError: a pair that the model doesn't have.
    """
    wanted = parameters.critical_pair
    if wanted is None:
        ten = math.ceil(request.spectrum.pair_at_rotations(10.0, request.original_length))
        wanted = max(critical.theoretical_pair(request) - parameters.critical_shift, ten)
        wanted = min(max(wanted, 1), request.spectrum.pairs - 1)
    found = critical.critical_pair("longrope2", wanted, 0, request)
    assert found is not None
    return found


def compute(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = F_(i-P) from pair P = d_rcd on, F_0^(i/P) before it; without a list F = tail s; a as in LongRoPE.

    Source: 2502.20082, algorithms 1 and 2: below P, the NTK divisors of the base whose pair P is divided by F_0. A list
    of all d/2 divisors is taken whole.

    Raises:
        UsageError: a list of the wrong length, sign or order; a tail outside 1 to 2; a pair that the model hasn't.
    """
    pairs, factors = request.spectrum.pairs, parameters.factors
    a = temperature(parameters.temperature, request.scale, request.original_length)
    if factors is not None and len(factors) == pairs:
        check_list("longrope2", "factors", factors, pairs, monotone=parameters.monotone)
        return Rotation(factors, a)
    if not 1 <= parameters.tail <= 2:
        raise UsageError(
            f"longrope2: tail={parameters.tail:g} is outside the searched range", "give a tail from 1 to 2"
        )
    start = find_critical(parameters, request)
    if factors is None:
        factors = (parameters.tail * request.scale,) * (pairs - start)
    elif len(factors) != pairs - start:
        raise UsageError(
            f"longrope2: factors holds {len(factors)} numbers; this model rotates {pairs} pairs, {pairs - start} from"
            f" the critical pair {start} on",
            "give one number for each pair, or one for each from the critical pair on (--param critical_pair=...)",
        )
    check_list("longrope2", "factors", factors, pairs - start, monotone=parameters.monotone)
    divisors = tuple(factors[0] ** (i / start) for i in range(start)) + factors
    return Rotation(divisors, a)


METHOD = Method(
    name="longrope2",
    title="LongRoPE2",
    reference="2502.20082 section 3.2, algorithms 1 and 2",
    summary="Interpolates pairs from the real critical one on by searched factors of s to 2s, those before it as NTK"
    " does.",
    evidence=(
        "10B tokens, RULER-128k: LLaMA3-8B 82.03 against YaRN 49.39, NTK 73.19, LongRoPE 73.40; Phi3-mini 58.81 against"
        " 39.37, 49.37, 53.71 (table 2)",
        "short tasks keep 98.6 % (LLaMA3-8B) and 97.6 % (Phi3-mini) of their score (table 4)",
        "critical_shift=5: the search found pair 30 for LLaMA3-8B (theory: 35), 25 for Phi3-mini (31)",
    ),
    costs=(
        "without a list it is only the search's starting point (algorithm 1): no table reports it",
        "the short-task scores rest on mixed training and on a switch to plain RoPE below L0, which needs the cache"
        " computed anew; here one list serves all lengths",
    ),
    needs="calibration",
    needs_training="10B tokens in the paper",
    parameters=Parameters,
    compute=compute,
)
