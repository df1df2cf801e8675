"""ALiBi slope scaling: Position Interpolation for models whose positions are a bias on distance."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UnsupportedError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """The parameters of slope scaling."""

    dynamic: bool = parameter(
        False, "slopes x min(1, L0/l) for a query that sees l tokens, instead of L0/L' for every query"
    )


def compute(_parameters: Parameters, _request: Request) -> Rotation:
    """Slopes x L0/L' (2310.13017, section 3); no rotation, so a RoPE model is refused.

    Raises:
        UnsupportedError: always; `ctxforge.positions.alibi` does the work on a model with ALiBi.
    """
    raise UnsupportedError(
        "alibi-interpolation scales ALiBi's slopes, and this model has RoPE",
        "use --method pi, which interpolates rotary positions",
    )


METHOD = Method(
    name="alibi-interpolation",
    title="ALiBi slope scaling",
    reference="2310.13017 section 3",
    summary="Multiplies ALiBi's slopes by L0/L', so that distances up to L' give the biases that the weights know.",
    evidence=("twice the trained length without loss and without a fine-tune (2310.13017)",),
    needs_training="no, to about twice the trained length",
    parameters=Parameters,
    compute=compute,
    scheme="alibi",
    needs_code=True,
    needs="custom code",
    costs=(
        "static scaling flattens the bias of short prompts too; dynamic=true leaves them as they were",
        "loads with trust_remote_code in transformers only: stock BLOOM, MPT and Falcon hard-code their slopes",
    ),
)
