"""Dual Chunk Attention: positions start anew in each chunk, and three rules say how far other chunks are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal
from ctxforge.attention.remapping import refuse_dynamic, usable_length
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """The longest distance c, 3/4 L0 unless given, and the local window l, L0/8 unless given, as published.

    Raises:
        UsageError: a distance that is not trained, a local window that leaves no chunk, a dynamic method.
    """
    refuse_dynamic("dual-chunk", situation)
    trained, usable = situation.trained_length, usable_length(situation)
    chunk = int(given.get("chunk", 3 * trained // 4))  # type: ignore[arg-type]
    local = int(given.get("local", min(trained // 8, chunk // 2)))  # type: ignore[arg-type]
    if not 2 <= chunk < usable:
        raise UsageError(
            f"dual-chunk: chunk={chunk} means distances up to {chunk}, and it must be 2 to {usable - 1} tokens",
            f"leave chunk out for {3 * trained // 4}, or add a RoPE method that makes the rotation longer",
        )
    if not 1 <= local < chunk:
        raise UsageError(
            f"dual-chunk: a local window of {local} in a chunk of {chunk} is not 1 to {chunk - 1} tokens",
            "leave local out for an eighth of the trained length, or give one in that range",
        )
    return {"chunk": chunk, "local": local}


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """Distances by the number of chunks between, each m - n where a chunk's start is at most l tokens back."""
    import torch

    del heads
    longest = int(parameters["chunk"])
    size = longest - int(parameters["local"])
    at = torch.arange(length)
    inside, chunk = at % size, at // size
    apart = chunk[:, None] - chunk[None, :]
    own = inside[:, None]
    after = (inside + size).clamp(max=longest)[:, None]
    query = torch.where(apart <= 0, own, torch.where(apart == 1, after, longest))
    return Pattern(causal(length), (query - inside[None, :])[None])


ATTACHMENTS = (
    Attachment(
        name="dual-chunk",
        title="Dual Chunk Attention (ChunkLlama)",
        reference="2402.17463; HKUNLP/ChunkLlama (Apache-2.0)",
        summary="Positions start anew in each chunk; the chunk before and older ones stand at fixed distances up to c.",
        can=(
            "Runs at any length without training, and sees every token; no distance exceeds c.",
            "Texts up to c - l tokens are the unmodified model's.",
        ),
        cannot=(
            "Tell which of two old chunks came first: all of them stand at the same distances.",
            "See past the model's own sliding window, where it has one.",
            "Save memory: all keys are kept.",
        ),
        needs="nothing",
        cost="prefill as full attention and a little; a decoded token as full attention; keys are held twice",
        engines="transformers 5.12 or later, with trust_remote_code",
        parameters=(
            Parameter("chunk", "int", None, "longest distance, c; three quarters of the trained length"),
            Parameter("local", "int", None, "tokens before a chunk at their true distance, l; an eighth of L0"),
        ),
        resolve=resolve,
        pattern=pattern,
        system="dual_chunk",
    ),
)
