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
        rounding: what rounding alone makes of them, without a cache: in batches of other sizes, and with the embeddings
            one unit in the last place up or down; 0 in float32, where it is not measured. In bfloat16 another tiling
            of the same sums moves logits of 40 by 1.
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
    try:
        return _check(model, ids[:count], start, 0)
    except NotImplementedError:
        # A model that must see every position from 0 on gets what lies before, too.
        if not 0 < start <= len(ids) - count:
            return None
    except (TypeError, ValueError, AttributeError):
        return None
    try:
        return _check(model, ids[: start + count], 0, start)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None


def _check(model: Any, ids: Sequence[int], start: int, before: int) -> CacheCheck | None:
    """The check on these tokens, at positions from `start` on; the first `before` of them are only context."""
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(start, start + len(ids), device=model.device).unsqueeze(0)
    with torch.no_grad():
        # Chunks first: dynamic NTK keeps the table of the longest input so far, and would hide what it does.
        parts = _chunked(model, tokens, positions, before)
        whole = _logits(model, positions, before, input_ids=tokens)[0]
    if parts is None:
        return None
    difference = (whole.float() - parts.float()).abs().max()
    return CacheCheck(float(difference), _rounding(model, tokens, positions, whole, before))


def _logits(model: Any, positions: torch.Tensor, before: int, **given: torch.Tensor) -> torch.Tensor:
    """Logits [B, n, V] of the tokens after the first `before`, in one pass."""
    keep = {"logits_to_keep": positions.shape[1] - before} if before else {}
    logits: torch.Tensor = model(
        position_ids=positions, attention_mask=torch.ones_like(positions), use_cache=False, **given, **keep
    ).logits
    return logits


def _rounding(model: Any, tokens: torch.Tensor, positions: torch.Tensor, whole: torch.Tensor, before: int) -> float:
    if model.dtype == torch.float32:
        return 0.0
    found = []
    with torch.no_grad():
        # Other batch sizes and not other lengths: a table that follows the length is no rounding.
        for rows in (2, 3):
            found.append(_logits(model, positions.expand(rows, -1), before, input_ids=tokens.expand(rows, -1)))
        # Where each row is computed by itself, that shows nothing: the same text, its embeddings rounded otherwise.
        embedded = model.get_input_embeddings()(tokens)
        up = torch.rand(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded.device) < 0.5
        step = torch.finfo(embedded.dtype).eps
        moved = embedded * torch.where(up, 1 + step, 1 - step).to(embedded.dtype)
        found.append(_logits(model, positions, before, inputs_embeds=moved))
    return max(float((logits.float() - whole.float()).abs().max()) for logits in found)


def _chunked(model: Any, tokens: torch.Tensor, positions: torch.Tensor, before: int) -> torch.Tensor | None:
    name = cache_argument(model)
    cache: Any = None
    parts: list[torch.Tensor] = []
    at = 0
    while at < tokens.shape[1]:
        size = _CHUNKS[min(len(parts), len(_CHUNKS) - 1)] + (0 if parts else before)
        end = min(at + size, tokens.shape[1])
        output = model(
            input_ids=tokens[:, at:end],
            position_ids=positions[:, at:end],
            attention_mask=torch.ones_like(tokens[:, :end]),
            use_cache=True,
            **{name: cache},
            **({"logits_to_keep": size - before} if before and not parts else {}),
        )
        cache = getattr(output, name, None)
        if cache is None:
            return None
        parts.append(output.logits[0])
        at = end
    return torch.cat(parts)
