"""MrRoPE: RoPE as digits in a mixed radix; the middle digits' radices are enlarged until their product is s."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.methods.yarn import temperature
from ctxforge.rope.spectrum import clip
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """MrRoPE's parameters."""

    alpha: float = parameter(32.0, "pairs that turn more often than this within L0 are left alone")
    beta: float = parameter(1.0, "pairs that turn less often than this within L0 are interpolated by s")


def steps(parameters: Parameters, request: Request) -> tuple[tuple[float, ...], int]:
    """(t_i, n): enlarged radices below pair i, and in all, t_i = clip(i - lo, 0, n), n = hi - lo.

    lo is the last pair with more than alpha turns within L0 (0 if there is none), hi the first with fewer than beta
    (2601.22181, section 3.2, dimension classes).

    Raises:
        UsageError: alpha is not above beta.
    """
    if parameters.alpha <= parameters.beta:
        raise UsageError(
            f"alpha={parameters.alpha:g} is not above beta={parameters.beta:g}",
            "alpha counts rotations of the fast pairs and must be the larger (defaults: 32 and 1)",
        )
    spectrum, length = request.spectrum, request.original_length
    low = max(math.ceil(spectrum.pair_at_rotations(parameters.alpha, length)) - 1, 0)
    high = max(math.floor(spectrum.pair_at_rotations(parameters.beta, length)) + 1, low + 1)
    return tuple(clip(i - low, 0.0, high - low) for i in range(spectrum.pairs)), high - low


def compute_uni(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = s^(t_i/n): every middle radix enlarged alike; a = 0.1 ln s + 1 (2601.22181, eq. 13 to 16).

    t_i counts the middle pairs before i, n all of them.

    Raises:
        UsageError: alpha is not above beta.
    """
    done, n = steps(parameters, request)
    return Rotation(tuple(request.scale ** (t / n) for t in done), temperature(request.scale))


def compute_pro(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = s^(t_i(t_i+1)/(n(n+1))): slower middle radices enlarged more; a = 0.1 ln s + 1.

    The k-th of n middle radices grows by s^(2k/(n(n+1))); t_i counts the middle pairs before i (2601.22181, eq. 13 to
    16).

    Raises:
        UsageError: alpha is not above beta.
    """
    done, n = steps(parameters, request)
    return Rotation(tuple(request.scale ** (t * (t + 1) / (n * (n + 1))) for t in done), temperature(request.scale))


def _method(name: str, title: str, summary: str, evidence: tuple[str, ...], compute: Callable[..., Rotation]) -> Method:
    return Method(
        name=name,
        title=title,
        reference="2601.22181 section 3",
        summary=summary,
        evidence=evidence,
        costs=(
            "static: short prompts pay for it too",
            "training-free results only; written from the paper's equations, not from its authors' code",
        ),
        needs_training="no: published training-free",
        parameters=Parameters,
        compute=compute,
    )


UNI = _method(
    "mrrope-uni",
    "MrRoPE-Uni",
    "Keeps fast pairs, divides slow ones by s, and enlarges every radix between by the same factor.",
    ("perplexity on Proof-pile between YaRN's and MrRoPE-Pro's: LLaMA2-7B at 4k 5.84 against 6.02 and 5.72 (table 4)",),
    compute_uni,
)
PRO = _method(
    "mrrope-pro",
    "MrRoPE-Pro",
    "Keeps fast pairs, divides slow ones by s, and enlarges the radices between progressively: slower ones more.",
    (
        "LLaMA3-8B-Instruct, training-free, RULER at 128k: 86.6 against YaRN's 79.9 (table 2)",
        "Infinite-Bench at 100k-128k: KV retrieval 27 % against 9 %, dialogue QA 22 % against 10 % (table 3)",
    ),
    compute_pro,
)
METHODS = (UNI, PRO)
