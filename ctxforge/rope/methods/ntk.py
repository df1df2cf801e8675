"""NTK-aware scaling: a larger base, so that slow pairs are interpolated by s and the fastest is untouched."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError
from ctxforge.rope.methods import critical
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """NTK-aware scaling's parameters."""

    critical_pair: int | None = parameter(None, critical.PAIR, kind="count")
    critical_shift: int = parameter(0, critical.SHIFT, kind="count")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """b' = b s^(d/(d-2)), that is lambda_i = s^(2i/(d-2)); a = 1 (2309.00071, section 3.1).

    With a critical pair P the base is chosen so that pair P, not the last, is interpolated by s: b' = b s^(d/(2P)),
    lambda_i = s^(i/P), larger than s beyond P. At the theoretical P = c(1) that is b^(ln(L'/2pi)/ln(L0/2pi)), the base
    of 2310.05209 and the "NTK" of LongRoPE2's tables (2502.20082, section 2.3 and table 5).

    Raises:
        UnsupportedError: fewer than two pairs, where the exponent is undefined.
        UsageError: a critical pair that the model doesn't have.
    """
    d, scale = request.spectrum.rotated_dims, request.scale
    if d < 4:
        raise UnsupportedError(f"NTK-aware scaling is undefined for {d} rotated dimensions", "use --method pi or abf")
    moved = critical.critical_pair("ntk", parameters.critical_pair, parameters.critical_shift, request)
    whole = (d - 2) / 2 if moved is None else moved
    base = request.spectrum.base * scale ** (d / (2 * whole))
    return Rotation(tuple(scale ** (i / whole) for i in range(d // 2)), form=RopeForm("default", {"rope_theta": base}))


METHOD = Method(
    name="ntk",
    title="NTK-aware scaling",
    reference="2309.00071 section 3.1 (first posted by u/bloc97); critical pair: 2502.20082 section 4.3",
    summary="Raises the base so that the slowest pair turns s times slower and the fastest is untouched.",
    evidence=(
        "the most portable method: every engine reads rope_theta",
        "Llama-2-7B fine-tuned to 8k, theta 20k: Proof-pile 3.59 at 8k against PI's 3.34, 6.24 against 8.07 at 10k"
        " (2309.00071, table 1)",
        "base from the critical pair, 10B tokens, RULER-128k of LLaMA3-8B: theory (critical_pair=35) 73.19, real"
        " (critical_pair=30) 77.25 (2502.20082, table 5)",
    ),
    costs=(
        "middle pairs are interpolated by less than s, so the usable length falls short of L': ask for more, or set a"
        " critical pair",
        "with a critical pair the slowest pairs are divided by much more than s",
    ),
    needs_training="optional",
    aliases=("ntk-aware",),
    parameters=Parameters,
    compute=compute,
)
