"""The dense reference of every attention system: an explicit mask, explicit distances, one obvious formula.

    score(q_m, k_n) = scaling a^2 q_m^T R(distance[m, n]) k_n + bias[m, n],   R(p) turns pair i by p f_i

over the keys with visible[m, n]. Quadratic in memory, and right: the fast forms in templates/modeling are held to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pattern:
    """Who sees whom, and as how far away, among T tokens; h is 1 or the number of heads.

    Attributes:
        visible: bool [h, T, T], row m for the query at position m.
        distance: [h, T, T], in tokens, what the rotation is told; only the visible entries count. May be fractional.
        bias: added to the scores, [h, T, T]; None for none.
        query_scale: factor on the scores of each query, [T]; None for 1.
    """

    visible: torch.Tensor
    distance: torch.Tensor
    bias: torch.Tensor | None = None
    query_scale: torch.Tensor | None = None


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frequencies: torch.Tensor,
    pattern: Pattern,
    *,
    scaling: float,
    interleaved: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention by the formula above, [B, H, T, Dv], in the dtype of the query (give float64 for a reference).

    Args:
        query, key, value: unrotated, [B, H, T, D], [B, K, T, D], [B, K, T, Dv].
        frequencies: radians per token [d/2]; dimensions past d are not rotated.
        pattern: see `Pattern`.
        scaling: factor on q.k.
        interleaved: dimension 2i pairs with 2i + 1; otherwise i pairs with i + d/2.
        temperature: a, the factor on cos and sin of queries and keys: rotated dimensions get a^2.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: one more logit a head without a value, [H].
    """
    import torch

    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    pairs = frequencies.shape[-1]
    q, k = _pairs(query, pairs, interleaved), _pairs(key, pairs, interleaved)
    angles = pattern.distance.to(query.dtype)[..., None] * frequencies.to(query.dtype)  # [h, T, T, d/2]
    # Re(conj(k) q e^{i angle}) over the pairs: q^T R(distance) k.
    same = torch.einsum("bhmi,bhni->bhmni", q.real, k.real) + torch.einsum("bhmi,bhni->bhmni", q.imag, k.imag)
    cross = torch.einsum("bhmi,bhni->bhmni", q.real, k.imag) - torch.einsum("bhmi,bhni->bhmni", q.imag, k.real)
    scores = temperature**2 * (same * angles.cos() + cross * angles.sin()).sum(-1)
    scores = scores + query[..., 2 * pairs :] @ key[..., 2 * pairs :].transpose(2, 3)
    scores = scores * scaling
    if pattern.query_scale is not None:
        scores = scores * pattern.query_scale.to(scores.dtype)[:, None]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if pattern.bias is not None:
        scores = scores + pattern.bias.to(scores.dtype)
    scores = scores.masked_fill(~pattern.visible, float("-inf"))
    if sinks is not None:
        extra = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat((scores, extra), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights @ value


def causal(length: int) -> torch.Tensor:
    """bool [1, T, T]: every token sees itself and all before it."""
    import torch

    return torch.ones(length, length, dtype=torch.bool).tril()[None]


def distances(length: int) -> torch.Tensor:
    """[1, T, T]: m - n."""
    import torch

    at = torch.arange(length)
    return (at[:, None] - at[None, :])[None]


def _pairs(states: torch.Tensor, pairs: int, interleaved: bool) -> torch.Tensor:
    """The rotated dimensions as complex numbers, [B, H, T, d/2]."""
    import torch

    turned = states[..., : 2 * pairs]
    if interleaved:
        return torch.complex(turned[..., 0::2].contiguous(), turned[..., 1::2].contiguous())
    return torch.complex(turned[..., :pairs].contiguous(), turned[..., pairs:].contiguous())
