"""Self-Extend: true distances to near tokens, distances in groups to far ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.remapping import comfortable, refuse_dynamic, refuse_short_reach, usable_length
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """The group g and the window w.

    Left out, w is the largest multiple of g up to a quarter of L0 (1024 of 4096, within the paper's 512 to 1536), and g
    the smallest with w + (L' - w)/g <= 2/3 L0, the paper's rule of thumb: distances near L0 are too rarely trained to
    be of use. Where no group obeys it, the smallest that reaches L' at all.

    Raises:
        UsageError: a window that the group does not divide, values out of range, a reach below L', a dynamic method.
    """
    refuse_dynamic("self-extend", situation)
    usable = usable_length(situation)
    group, window = (None if given.get(key) is None else int(given[key]) for key in ("group", "window"))  # type: ignore[arg-type]
    if group is not None and group < 1:
        raise UsageError(
            f"self-extend: a group of {group} is less than one token", "leave group out, or give 1 or more"
        )
    if window is not None and not 1 <= window < usable:
        raise UsageError(
            f"self-extend: a window of {window} tokens is not 1 to {usable - 1}",
            "leave window out, or give one in that range",
        )
    if group is None or window is None:
        group, window = _choose(group, window, situation)
    if window % group:
        lower = window // group * group or group
        raise UsageError(
            f"self-extend: a window of {window} is no multiple of the group of {group}", f"give window={lower}"
        )
    if situation.method == "none":
        needed = -(-(situation.target_length - window) // (usable - window))
        refuse_short_reach(
            f"self-extend with group={group}, window={window}",
            reach(group, window, usable),
            situation,
            f"give a group of {needed} or more that divides the window, or add a RoPE method"
            if needed <= window
            else "give another window, leave both out, or add a RoPE method",
        )
    return {"group": group, "window": window}


def reach(group: int, window: int, length: int) -> int:
    """Tokens until a distance would exceed `length` - 1: (L0 - w) g + w."""
    return (length - window) * group + window


def _choose(group: int | None, window: int | None, situation: Situation) -> tuple[int, int]:
    trained, target = situation.trained_length, situation.target_length
    quarter = max(1, trained // 4)
    if group is not None:
        if group > quarter:
            raise UsageError(
                f"self-extend: a group of {group} is above a quarter of the trained length of {trained}",
                f"give a window too, that it divides, below {trained}" if group < trained else f"give 1 to {quarter}",
            )
        return group, quarter // group * group
    if window is None:  # a group above the quarter is a window of its own
        pairs = [(g, max(1, quarter // g) * g) for g in range(1, max(1, trained // 2) + 1)]
    else:
        pairs = [(g, window) for g in range(1, window + 1) if window % g == 0]
    for g, w in pairs:
        if w + -(-(target - w) // g) <= comfortable(trained):
            return g, w
    for g, w in pairs:
        if reach(g, w, trained) >= target:
            return g, w
    return pairs[-1]


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """m - n within the window, m // g + w - w // g - n // g beyond."""
    import torch

    del heads
    group, window = int(parameters["group"]), int(parameters["window"])
    apart, at = distances(length), torch.arange(length)
    far = (at // group + window - window // group)[:, None] - (at // group)[None, :]
    return Pattern(causal(length), torch.where(apart < window, apart, far[None]))


ATTACHMENTS = (
    Attachment(
        name="self-extend",
        title="Self-Extend",
        reference="2401.01325; datamllab/LongLM (MIT)",
        summary="Distances are true up to a window and in groups of g tokens beyond, so that none exceeds training.",
        can=(
            "Reaches (L0 - w) g + w tokens without training, and sees every one of them.",
            "Short texts, up to the window, are the unmodified model's.",
        ),
        cannot=(
            "Tell the order of tokens within a far group.",
            "See past the model's own sliding window, where it has one.",
            "Save memory: all keys are kept, and two copies.",
        ),
        needs="nothing",
        cost="prefill as full attention and a little; a decoded token as full attention; keys are held three times",
        engines="transformers 5.12 or later, with trust_remote_code",
        parameters=(
            Parameter("group", "int", None, "tokens that share a far distance, g; the smallest that serves L'"),
            Parameter("window", "int", None, "tokens at their true distance, w, a multiple of g; about L0/4"),
        ),
        resolve=resolve,
        pattern=pattern,
        system="self_extend",
    ),
)
