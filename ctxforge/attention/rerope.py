"""ReRoPE and Leaky ReRoPE: true distances within a window, and beyond it one distance, or slowly growing ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.remapping import comfortable, refuse_dynamic, refuse_short_reach, usable_length
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """ReRoPE's window w: half of L0 unless given, because distances above are rarely trained.

    Raises:
        UsageError: a window out of range, a dynamic method.
    """
    return {"window": _window("rerope", given, situation.trained_length // 2, situation), "factor": None}


def resolve_leaky(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """Leaky ReRoPE's window w, a quarter of L0 unless given, and factor k.

    Left out, k is the smallest whole number with w + (L' - w)/k <= 2/3 L0, as for Self-Extend, whose distances are
    these in steps; where the window is too wide for that, the smallest that keeps distances within L0.

    Raises:
        UsageError: a window or factor out of range, a reach below L', a dynamic method.
    """
    window = _window("leaky-rerope", given, situation.trained_length // 4, situation)
    usable, target = usable_length(situation), situation.target_length
    smallest = max(1, -(-(target - 1 - window) // max(1, usable - 1 - window)))
    if "factor" in given:
        factor = float(given["factor"])  # type: ignore[arg-type]
    else:
        room = comfortable(situation.trained_length) - window
        factor = float(max(1, -(-(target - window) // room)) if room > 0 else smallest)
    if not 1 <= factor < math.inf:
        raise UsageError(
            f"leaky-rerope: a factor of {factor:g} is not a number from 1 on", "leave factor out, or give 1 or more"
        )
    if situation.method == "none":
        refuse_short_reach(
            f"leaky-rerope with window={window}, factor={factor:g}",
            math.floor((usable - 1 - window) * factor) + window + 1,
            situation,
            f"give factor={smallest} or a smaller window, or add a RoPE method"
            if window < usable - 1
            else "give a smaller window, or add a RoPE method",
        )
    return {"window": window, "factor": factor}


def _window(name: str, given: Mapping[str, Value], default: int, situation: Situation) -> int:
    refuse_dynamic(name, situation)
    window = int(given.get("window", max(1, default)))  # type: ignore[arg-type]
    usable = usable_length(situation)
    if not 1 <= window < usable:
        raise UsageError(
            f"{name}: a window of {window} tokens is not 1 to {usable - 1}",
            f"leave window out for {max(1, default)}, or give one in that range",
        )
    return window


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """min(m - n, w), or w + (m - n - w)/k beyond the window."""
    import torch

    del heads
    window, factor = int(parameters["window"]), parameters.get("factor")
    apart = distances(length).double()
    far = torch.full_like(apart, window) if factor is None else window + (apart - window) / float(factor)
    return Pattern(causal(length), torch.where(apart < window, apart, far))


_ENGINES = "transformers 5.12 or later, with trust_remote_code"
_WINDOW = "tokens at their true distance, w; half of the trained length"

ATTACHMENTS = (
    Attachment(
        name="rerope",
        title="ReRoPE",
        reference="bojone/rerope (no licence file; formulas only)",
        summary="Distances are true up to a window w, and w for everything beyond.",
        can=("Runs at any length without training, and sees every token.", "Texts up to w are the unmodified model's."),
        cannot=(
            "Tell far tokens apart by position, not even which came first.",
            "See past the model's own sliding window, where it has one.",
            "Save memory: all keys are kept.",
        ),
        needs="nothing",
        cost="prefill as full attention and a little; a decoded token as full attention; keys are held twice",
        engines=_ENGINES,
        parameters=(Parameter("window", "int", None, _WINDOW),),
        resolve=resolve,
        pattern=pattern,
        system="rerope",
    ),
    Attachment(
        name="leaky-rerope",
        title="Leaky ReRoPE",
        reference="bojone/rerope (no licence file; formulas only)",
        summary="Distances are true up to a window w, and grow at 1/k of their pace beyond.",
        can=(
            "Reaches about (L0 - w) k + w tokens without training, and sees every one of them.",
            "Texts up to w are the unmodified model's.",
        ),
        cannot=(
            "Tell far tokens apart as finely as near ones.",
            "See past the model's own sliding window, where it has one.",
            "Save memory: all keys are kept, and two copies.",
        ),
        needs="nothing",
        cost="prefill as full attention and a little; a decoded token as full attention; keys are held three times",
        engines=_ENGINES,
        parameters=(
            Parameter("window", "int", None, "tokens at their true distance, w; a quarter of the trained length"),
            Parameter("factor", "float", None, "by how much distances beyond w are divided, k; the smallest for L'"),
        ),
        resolve=resolve_leaky,
        pattern=pattern,
        system="rerope",
    ),
)
