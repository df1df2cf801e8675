"""InfLLM: sinks, a window, and blocks of what lies between, which each query retrieves by their representatives.

The fast form is templates/modeling/modeling_infllm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError

_SINKS, _BLOCK = 128, 128
# Sinks and a block are at most this part of L: 128 tokens of the 8192 of the published settings.
_PART = 64


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """Window W, sinks G, blocks, how many a query chooses, and representatives.

    L is the length that the rotation is made for: L0, or L' with a method that extends. Sinks and blocks have 128
    tokens unless given, or L / 64 if that is less. W is what is left of L once a query has seen its sinks, its chosen
    blocks and the block that is not yet whole, and L / 2 at least: then no distance exceeds L - 1, and by default no
    query sees more than L keys.

    Raises:
        UsageError: negative numbers, a window that is not larger than the sinks or not as large as a block, window and
            sinks above L together, or more representatives than tokens in a block.
    """
    longest = situation.trained_length if situation.method == "none" else situation.target_length

    def number(name: str, default: int) -> int:
        return int(given.get(name, default))  # type: ignore[arg-type]

    sinks = number("sinks", min(_SINKS, longest // _PART))
    block = number("block", max(min(_BLOCK, longest // _PART), 1))
    topk = number("topk", 16)
    window = number("window", max(longest - sinks - block * (topk + 1), longest // 2))
    representatives = number("representatives", min(4, block))
    for name, value, least in (
        ("sinks", sinks, 0),
        ("block", block, 1),
        ("topk", topk, 0),
        ("representatives", representatives, 1),
    ):
        if value < least:
            raise UsageError(f"infllm: {name}={value}", f"give {least} or more")
    if window <= sinks:
        raise UsageError(
            f"infllm: a window of {window} tokens is not larger than {sinks} sinks",
            f"give window={sinks + 1} or more, or fewer sinks",
        )
    if window < block:
        raise UsageError(
            f"infllm: a window of {window} tokens is less than a block of {block}",
            f"give window={block} or more, or a smaller block",
        )
    if window + sinks > longest:
        raise UsageError(
            f"infllm: window={window} and sinks={sinks} exceed the {longest} tokens that the rotation is made for",
            f"give window={longest - sinks} or less, or a --method that extends the rotation",
        )
    if representatives > block:
        raise UsageError(
            f"infllm: {representatives} representatives of a block of {block} tokens", f"give {block} or fewer"
        )
    numbers = {"window": window, "sinks": sinks, "block": block, "topk": topk, "representatives": representatives}
    return {**numbers, "offload": bool(given["offload"])}


ATTACHMENTS = (
    Attachment(
        name="infllm",
        title="InfLLM",
        reference="2402.04617; thunlp/InfLLM:inf_llm/attention/context_manager.py (MIT)",
        summary="Each token sees the first G and the last W tokens, and the blocks between that it scores highest.",
        can=(
            "Runs at any length without training, and retrieves from the middle; no distance exceeds W.",
            "Texts up to W tokens are the unmodified model's.",
            "A decoded token attends to W + G + (topk + 1) block keys at most, at any length.",
            "With offload=true, keys and values older than the window stay in the processor's memory.",
        ),
        cannot=(
            "See what is in no chosen block: a fact that its block's representatives do not point at is missed.",
            "Tell which of two old tokens came first: all of them stand W away.",
            "Save memory without offload: all keys and values are kept.",
            "Retrieve in layers that have a sliding window of their own; those keep to it.",
            "Take tokens back (no assisted decoding), or serve a mask of one's own or positions that do not count up.",
        ),
        needs="nothing",
        cost="O(T (W + G + topk block)) for a prompt and T S / block products to choose; O(W + G + topk block) and S /"
        " block a decoded token; a cache of all tokens. With gradients or a soft cap a prompt costs up to all",
        engines="transformers 5.12 or later, with trust_remote_code",
        parameters=(
            Parameter(
                "window",
                "int",
                None,
                "last tokens that are seen, W; L0 less the sinks and topk + 1 blocks, and L0 / 2 at least",
            ),
            Parameter("sinks", "int", None, "first tokens that are seen always, G; 128, or L0 / 64 if that is less"),
            Parameter("block", "int", None, "tokens of a block; 128, or L0 / 64 if that is less"),
            Parameter("topk", "int", 16, "blocks that a query chooses; 0 for none"),
            Parameter("representatives", "int", None, "tokens that stand for a block when it is chosen; 4"),
            Parameter("offload", "bool", False, "whether keys older than the window move to the processor's memory"),
        ),
        resolve=resolve,
        pattern=None,
        system="infllm",
    ),
)
