"""Does a cache change what the model says? One forward against chunks with a KV cache, across the trained length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ctxforge.verification.retrieval import cache_argument

_TOKENS = 192
_CHUNKS = (96, 48, 24, 12, 6, 3, 1, 1, 1)


@dataclass(frozen=True)
class CacheCheck:
    """What a cache changes.

    Attributes:
        largest: absolute difference in logits.
        rounding: the same between forwards in batches of other sizes, without a cache; 0 in float32, where it is not
            measured. In bfloat16 another tiling of the same sums moves logits of 40 by 1.
    """

    largest: float
    rounding: float


def beyond_rounding(largest: float, rounding: float) -> float:
    """What of a difference is more than twice what rounding alone makes of it."""
    return max(0.0, largest - 2 * rounding)


def cache_difference(model: Any, ids: Sequence[int], trained_length: int, target_length: int) -> CacheCheck | None:
    """Largest absolute difference between logits of one pass and of chunks with a cache.

    The tokens stand at positions around the trained length, so that a table which switches or grows there is caught:
    keys that were rotated before the switch stay in the cache as they were. Costs a few hundred tokens, whatever the
    lengths are.

    Args:
        model: a causal LM of transformers in evaluation mode.
        ids: at least 192 token ids.
        trained_length: L0 in tokens.
        target_length: L' in tokens.

    Returns:
        The difference; None for a model that keeps no cache or takes no position ids.
    """
    count = min(_TOKENS, len(ids), target_length)
    start = max(0, min(trained_length - count // 2, target_length - count))
    tokens = torch.tensor([list(ids[:count])], device=model.device)
    positions = torch.arange(start, start + count, device=model.device).unsqueeze(0)
    try:
        with torch.no_grad():
            # Chunks first: dynamic NTK keeps the table of the longest input so far, and would hide what it does.
            parts = _chunked(model, tokens, positions)
            whole = model(
                input_ids=tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False
            ).logits[0]
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None
    if parts is None:
        return None
    return CacheCheck(float((whole.float() - parts.float()).abs().max()), _rounding(model, tokens, positions, whole))


def _rounding(model: Any, tokens: torch.Tensor, positions: torch.Tensor, whole: torch.Tensor) -> float:
    if model.dtype == torch.float32:
        return 0.0
    found = 0.0
    # Other batch sizes and not other lengths: a table that follows the length is no rounding.
    for rows in (2, 3):
        many = tokens.expand(rows, -1)
        with torch.no_grad():
            logits = model(
                input_ids=many,
                position_ids=positions.expand(rows, -1),
                attention_mask=torch.ones_like(many),
                use_cache=False,
            ).logits
        found = max(found, float((logits.float() - whole.float()).abs().max()))
    return found


def _chunked(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    name = cache_argument(model)
    cache: Any = None
    parts: list[torch.Tensor] = []
    at = 0
    while at < tokens.shape[1]:
        size = _CHUNKS[min(len(parts), len(_CHUNKS) - 1)]
        end = min(at + size, tokens.shape[1])
        output = model(
            input_ids=tokens[:, at:end],
            position_ids=positions[:, at:end],
            attention_mask=torch.ones_like(tokens[:, :end]),
            use_cache=True,
            **{name: cache},
        )
        cache = getattr(output, name, None)
        if cache is None:
            return None
        parts.append(output.logits[0])
        at = end
    return torch.cat(parts)
