"""One softmax over several sets of scores, each with queries, keys and a mask of its own.

    weights = softmax over all sets together of scaling q_i . k_i,   output = sum over i of weights_i v_i

Each set is attended to alone, by a fused kernel where there is one, and the outputs are weighted by the sets' shares,
exp(L_i) / sum exp(L_j), L the log-sum-exp of a set's scores. With gradients, dropout or a soft cap, or without such a
kernel, the scores stand in memory instead: kernels give no gradient of L.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .ctxforge_attention import Call, softmax_attention

_CPU_KERNEL = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_GPU_KERNEL = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention", None)


@dataclass
class ScoreSet:
    """Scores of the same t queries with some keys.

    Attributes:
        query, key, value: [B, H, t, D], [B, K, s, D], [B, K, s, Dv], of one dtype.
        mask: bool [B or 1, 1, t, s], true where the pair counts; None where all do.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None


def needs_scores(call: Call) -> bool:
    """Whether the scores of `call` must stand in memory: for gradients, dropout, a soft cap, or want of a kernel."""
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.key, call.value))
    return trains or call.dropout > 0 or call.softcap is not None or not _has_kernel(call.value, call.query.shape[3])


def _has_kernel(value: torch.Tensor, width: int) -> bool:
    """Whether a kernel gives the log-sum-exp here: torch's on a CPU, FlashAttention on a GPU."""
    if width != value.shape[3]:
        return False
    if value.device.type == "cpu":
        return _CPU_KERNEL is not None
    if value.device.type != "cuda" or _GPU_KERNEL is None or value.dtype not in (torch.float16, torch.bfloat16):
        return False
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(value.device)[0] >= 8


def attend(call: Call, sets: list[ScoreSet]) -> torch.Tensor:
    """Attention's output [B, H, t, Dv], in the values' dtype.

    Args:
        call: for its scaling, dropout, softcap and sinks.
        sets: at least one; a pair of query and key counts in at most one of them.
    """
    if len(sets) == 1:
        only = sets[0]
        return softmax_attention(call, only.query, only.key, only.value, only.mask)
    first = sets[0]
    heads, width = first.query.shape[1:3]
    found = _with_scores(call, sets) if needs_scores(call) else _by_shares(call, sets)
    return found.reshape(found.shape[0], heads, width, found.shape[-1])


def _by_shares(call: Call, sets: list[ScoreSet]) -> torch.Tensor:
    """[B, K, H/K t, Dv]."""
    parts = [_part(call, one) for one in sets]
    totals = [total for _, total in parts]
    if call.sinks is not None:
        totals.append(_per_row(call.sinks.to(totals[0].dtype), sets[0]).expand_as(totals[0]))
    shares = torch.stack(totals).softmax(dim=0)
    output = sum(found * share[..., None] for (found, _), share in zip(parts, shares, strict=False))
    return output.to(call.value.dtype)  # type: ignore[union-attr]


def _part(call: Call, one: ScoreSet) -> tuple[torch.Tensor, torch.Tensor]:
    """The output over one set alone, [B, K, H/K t, Dv], and the log-sum-exp of its scores, [B, K, H/K t]."""
    query, mask = _fold(one)
    if query.device.type == "cpu":
        bias = None
        if mask is not None:
            # Finite, because the kernel's log-sum-exp of a row that sees nothing at -inf is 0.
            lowest = torch.finfo(query.dtype).min
            bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, lowest)
        return _CPU_KERNEL(query, one.key, one.value, 0.0, False, attn_mask=bias, scale=call.scaling)
    if mask is None:
        found = _GPU_KERNEL(query, one.key, one.value, 0.0, False, False, scale=call.scaling)
        return found[0], found[1]
    return _explicit_part(call, one)  # FlashAttention takes no mask; what is masked is no wider than a few blocks


def _explicit_part(call: Call, one: ScoreSet) -> tuple[torch.Tensor, torch.Tensor]:
    """`_part` with the scores in memory."""
    scores = _scores(call, one)
    total = scores.logsumexp(dim=-1)
    return (scores - total[..., None]).exp().to(one.value.dtype) @ one.value, total


def _with_scores(call: Call, sets: list[ScoreSet]) -> torch.Tensor:
    """[B, K, H/K t, Dv]."""
    scores = [_scores(call, one) for one in sets]
    widths = [one.shape[-1] for one in scores]
    if call.sinks is not None:
        sinks = _per_row(call.sinks.to(scores[0].dtype), sets[0])
        scores.append(sinks[..., None].expand(*scores[0].shape[:3], 1))
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)[..., : sum(widths)]
    weights = nn.functional.dropout(weights, p=call.dropout, training=call.dropout > 0)
    split = weights.to(call.value.dtype).split(widths, dim=-1)
    found = [part @ one.value for part, one in zip(split, sets, strict=True)]
    return torch.stack(found).sum(dim=0)


def _scores(call: Call, one: ScoreSet) -> torch.Tensor:
    """Masked scores in float32 at least, [B, K, H/K t, s]."""
    query, mask = _fold(one)
    scores = query @ one.key.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _fold(one: ScoreSet) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Query heads that share a key head as further queries of it, so that no key is copied: [B, K, H/K t, D]."""
    rows, heads, width, size = one.query.shape
    groups = heads // one.key.shape[1]
    query, mask = one.query.reshape(rows, heads // groups, groups * width, size), one.mask
    if mask is not None and groups > 1:
        mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    return query, mask


def _per_row(of_heads: torch.Tensor, one: ScoreSet) -> torch.Tensor:
    """One number a query head, [H], for each folded query: [1, K, H/K t]."""
    return of_heads.view(1, one.key.shape[1], -1).repeat_interleave(one.query.shape[2], dim=2)
