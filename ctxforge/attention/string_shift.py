"""STRING: the far part of the context is told nearer, so that rarely trained distances are never used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.remapping import refuse_dynamic, refuse_short_reach, usable_length
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """The shift S and the window W.

    Left out, S is a third of the length whose distances the rotation serves (0.25 to 0.4 of it was found good), and W
    128 tokens, or a quarter of S in models too short for that. STRING improves the use of that length; it reaches
    S - W tokens farther and no more.

    Raises:
        UsageError: values out of range or order, a reach below L', a dynamic method.
    """
    refuse_dynamic("string", situation)
    usable = usable_length(situation)
    shift = int(given.get("shift", max(1, usable // 3)))  # type: ignore[arg-type]
    if not 1 <= shift < usable:
        raise UsageError(
            f"string: a shift of {shift} tokens is not 1 to {usable - 1}",
            f"leave shift out for {max(1, usable // 3)}, or give one in that range",
        )
    window = int(given.get("window", min(128, max(1, shift // 4))))  # type: ignore[arg-type]
    if not 1 <= window <= shift:
        raise UsageError(
            f"string: a window of {window} beside a shift of {shift} is not 1 to {shift} tokens",
            "leave window out, or give one in that range",
        )
    reach = usable + shift - window
    refuse_short_reach(
        f"string with shift={shift}, window={window}",
        reach,
        situation,
        f"add a RoPE method (--method yarn), or go to {reach} tokens at most",
    )
    return {"shift": shift, "window": window}


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """m - n below the shift, m - n - S + W from it on."""
    import torch

    del heads
    shift, window = int(parameters["shift"]), int(parameters["window"])
    apart = distances(length)
    return Pattern(causal(length), torch.where(apart < shift, apart, apart - shift + window))


ATTACHMENTS = (
    Attachment(
        name="string",
        title="STRING, shifted rotary positions",
        reference="2410.18745 (code MIT)",
        summary="Tokens from S back on count as W back and so on: the largest, rarely trained distances are not used.",
        can=("Use the length that the model already has better, far retrieval above all; sees every token.",),
        cannot=(
            "Extend: it reaches S - W tokens past the length it starts from; add a RoPE method to go farther.",
            "See past the model's own sliding window, where it has one.",
            "Tell tokens W to S back from those S to 2 S - W back by distance: two of them share each.",
        ),
        needs="nothing",
        cost="prefill as full attention and a little; a decoded token as full attention; keys are held twice",
        engines="transformers 5.12 or later, with trust_remote_code",
        parameters=(
            Parameter("shift", "int", None, "how far back the far part begins, S; a third of the length"),
            Parameter("window", "int", None, "what counts as the distance there, W; 128 tokens at most"),
        ),
        resolve=resolve,
        pattern=pattern,
        system="string",
    ),
)
