"""The critical pair: the first that does not complete a rotation within the trained length.

LongRoPE2 (2502.20082, section 3.1) argues that slow pairs are trained too little for theory to hold, so that the real
critical pair lies before the theoretical one: 30 instead of 35 for LLaMA3-8B, 25 instead of 31 for Phi3-mini.
"""

from __future__ import annotations

import math

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Request

PAIR = "index of the first pair that gets the whole scale (d_rcd of LongRoPE2); none: where theory puts it"
SHIFT = "how many pairs before the theoretical critical pair d_rcd lies"


def theoretical_pair(request: Request) -> int:
    """d_tcd = ceil(c(1)), c(1) the fractional pair that turns once within L0 (2502.20082, eq. 7, counted in pairs)."""
    return math.ceil(request.spectrum.pair_at_rotations(1.0, request.original_length))


def critical_pair(method: str, pair: int | None, shift: int, request: Request) -> int | None:
    """d_rcd as asked for, as an absolute pair index or as a shift; None when neither is given.

    Args:
        method: for the message.
        pair: parameter `critical_pair`.
        shift: parameter `critical_shift`; 0 counts as not given.
        request: what the method is asked for.

    Raises:
        UsageError: both are given, or the index is not one of the pairs 1 ... d/2 - 1.
    """
    if pair is None and shift == 0:
        return None
    if pair is not None and shift:
        raise UsageError(
            f"{method}: critical_pair and critical_shift are both given", "give one: the index, or how far to shift it"
        )
    theory = theoretical_pair(request)
    index = theory - shift if pair is None else pair
    last = request.spectrum.pairs - 1
    if not 1 <= index <= last:
        raise UsageError(
            f"{method}: the critical pair would be {index}, and theory puts it at {theory}",
            f"this model's pairs go to {last}: choose a critical pair from 1 to {last}",
        )
    return index
