"""The arithmetic of attention that the systems share: one call's tensors, rotation, and softmax over what is visible.

Shapes: B rows, H query heads, K key heads, T queries, S keys, D dimensions of a head, d rotated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Call:
    """One call of the attention function, nothing rotated yet.

    Attributes:
        query, key, value: [B, H, T, D], [B, K, S, D], [B, K, S, Dv].
        query_positions, key_positions: [B, T], [B, S], integers.
        mask: bool [B or 1, 1, T, S], true where a query sees a key; None when each query sees its own and all earlier
            keys, query i standing at index S - T + i.
        scaling: factor on q.k; dropout: of the attention weights.
        softcap: scores become softcap * tanh(score / softcap); None for none.
        sinks: one more logit a head that takes weight and gives no value, [H]; None for none.
        cache: the transformers Cache that holds `key` and `value`; None without one.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_positions: torch.Tensor
    key_positions: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    dropout: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    cache: Any = None

    def visible(self, queries: slice, keys: slice) -> torch.Tensor:
        """Bool [B or 1, 1, t, s]: which of these keys these queries see."""
        if self.mask is not None:
            return self.mask[:, :, queries, keys]
        device, total = self.key.device, self.key.shape[2]
        rows = torch.arange(self.query.shape[2], device=device)[queries] + (total - self.query.shape[2])
        columns = torch.arange(total, device=device)[keys]
        return (columns[None, :] <= rows[:, None])[None, None]


def rotate(
    states: torch.Tensor,
    positions: torch.Tensor,
    frequencies: torch.Tensor,
    *,
    interleaved: bool,
    amplitude: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Rotate the first d dimensions of `states` [B, h, N, D] by position * frequency, in float32 at least.

    Args:
        states: query or key.
        positions: [B, N].
        frequencies: radians per token, [d/2] or [B, 1, d/2].
        interleaved: dimension 2i pairs with 2i + 1; otherwise i pairs with i + d/2.
        amplitude: factor on each pair, broadcast against [B, N, d/2].

    Returns:
        float32 (float64 for float64 states), [B, h, N, D]; dimensions past d as they were.
    """
    work = states.to(torch.promote_types(states.dtype, torch.float32))
    angles = positions[..., None].to(work.dtype) * frequencies.to(work.dtype)
    cos = (angles.cos() * amplitude)[:, None]
    sin = (angles.sin() * amplitude)[:, None]
    pairs = frequencies.shape[-1]
    if interleaved:
        halves = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        halves = slice(0, pairs), slice(pairs, 2 * pairs)
    first, second = (work[..., half] for half in halves)
    if not (torch.is_grad_enabled() and work.requires_grad):  # a third of the passes over memory
        turned = torch.empty_like(work, memory_format=torch.contiguous_format)
        wide = cos.repeat_interleave(2, dim=-1) if interleaved else torch.cat((cos, cos), dim=-1)
        torch.mul(work[..., : 2 * pairs], wide, out=turned[..., : 2 * pairs])
        # Not addcmul: a product that is rounded before it is added gives the stock layer's bits.
        turned[..., halves[0]] -= second * sin
        turned[..., halves[1]] += first * sin
        turned[..., 2 * pairs :] = work[..., 2 * pairs :]
        return turned
    parts = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    rest = work[..., 2 * pairs :]
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def softmax_attention(
    call: Call,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scaling q.k + bias) v over the keys that `mask` shows, [B, H, t, Dv].

    Args:
        call: for its scaling, dropout, softcap and sinks.
        query, key, value: [B, H, t, D], [B, K, s, D], [B, K, s, Dv]; key heads are repeated as needed.
        mask: bool, broadcast against [B, H, t, s]; None when nothing is hidden beyond `causal`.
        causal: query i sees keys up to i; needs t = s and no mask.
        bias: added to the scores, broadcast against [B, H, t, s].
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    groups = query.shape[1] // key.shape[1]
    if call.softcap is not None or call.sinks is not None:
        return _explicit_attention(call, query, key, value, mask, causal=causal, bias=bias)
    if bias is not None:
        if causal:
            mask = call.visible(slice(None), slice(None))
        bias = bias.to(query.dtype)
        mask = bias if mask is None else torch.where(mask, bias, torch.finfo(bias.dtype).min)
        causal = False
    shape = query.shape
    if groups > 1 and shape[2] == 1 and (mask is None or mask.shape[1] == 1):
        query = query.reshape(shape[0], key.shape[1], groups, shape[3])  # one query: heads of a group as its queries
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=call.dropout, is_causal=causal, scale=call.scaling
    )
    return output.reshape(shape[0], shape[1], shape[2], value.shape[3])


def _explicit_attention(
    call: Call,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        mask = call.visible(slice(None), slice(None))
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if call.sinks is not None:
        sinks = call.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=call.dropout, training=call.dropout > 0)
    return weights.to(value.dtype) @ value
