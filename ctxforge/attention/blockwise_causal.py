"""Blockwise causal attention with plain RoPE: a query sees its own block of positions and the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """The block length b in tokens: half of the trained length unless given.

    Raises:
        UsageError: a block of less than one token, or of more than half the length that the rotation is made for.
    """
    block = int(given.get("block", situation.trained_length // 2))  # type: ignore[arg-type]
    longest = situation.trained_length if situation.method == "none" else situation.target_length
    if block < 1:
        raise UsageError(f"blockwise-causal: block={block} is less than one token", f"give 1 to {longest // 2}")
    if block > longest // 2:
        raise UsageError(
            f"blockwise-causal: block={block}, and distances reach 2 x {block} - 1 tokens",
            f"give 1 to {longest // 2}: the rotation is made for {longest} tokens",
        )
    return {"block": block}


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """Visible are keys j <= i with i // b - j // b at most 1, at their true distance (2212.10554, section 3.3)."""
    import torch

    del heads
    block = torch.arange(length) // int(parameters["block"])
    near = block[:, None] - block[None, :] <= 1
    return Pattern(causal(length) & near, distances(length))


ATTACHMENTS = (
    Attachment(
        name="blockwise-causal",
        title="Blockwise causal attention",
        reference="2212.10554, section 3.3; no code published with it",
        summary="Each token sees its own block of b tokens and the block before, with the model's own rotation.",
        can=(
            "Runs at any length without training: no distance exceeds 2b - 1 tokens.",
            "Prefill grows linearly with the length.",
        ),
        cannot=(
            "Nothing farther back than 2b - 1 tokens is seen directly, for a block's first token b: no retrieval at a"
            " distance.",
            "Has no sinks: a model that rests on the first tokens of its text loses perplexity once these are out of"
            " sight (SmolLM2: half as much again, docs/attention-quality.md); lm-infinite keeps them.",
            "The cache keeps all keys, though those older than two blocks are never read again.",
        ),
        needs="nothing",
        cost="O(T b) for a prompt, O(b) a decoded token, a cache of all tokens",
        engines="transformers with trust_remote_code",
        parameters=(
            Parameter("block", "int", None, "tokens of a block, b; half of the trained length: 2b - 1 is below it"),
        ),
        resolve=resolve,
        pattern=pattern,
        system="blockwise_causal",
    ),
)
