"""Attention over bands of keys, by torch's own kernel where it can and with explicit scores where it can't.

A sink is one more term of the softmax's denominator, so the output with a sink is that without, times
sigmoid(logsumexp of the scores - sink), and the kernel returns the logsumexp.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ctxforge.errors import UnsupportedError
from ctxforge.verification.cpu_attention.bands import Band, causal_bands, is_causal, runs

# Scores held at once where they are explicit, all heads together: 128 MB in float32.
_SCORES = 1 << 25
# exp() of a score within this bound can neither overflow nor vanish in float32, so no maximum need be taken.
_SAFE_EXPONENT = 60.0


def blocked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    bands: list[Band] | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(cap(q k^T * scale), masked, with sinks) v.

    Args:
        query: [B, H, L, d].
        key: [B, H_kv, L, d] with H_kv dividing H.
        value: [B, H_kv, L, d_v].
        scale: factor on the scores; d ** -0.5 when None.
        bands: what rows may see, from `plan`; causal when None.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: [H], a score a head that takes its share of the softmax and has no value.

    Returns:
        [B, L, H, d_v] in the dtype of `value`.

    Raises:
        UnsupportedError: gradients are wanted, or the queries are not as many as the keys.
    """
    if torch.is_grad_enabled() and query.requires_grad:
        raise UnsupportedError("block attention has no gradients.", "Run the model under torch.no_grad().")
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    if key.shape[2] != length:
        raise UnsupportedError("block attention does not work on a cache.", "Run the model with use_cache=False.")
    # Key heads join the batch, so the heads that share one read the same memory: no expanded copy of the keys.
    group = heads // shared
    query = query.reshape(batch * shared, group, length, width)
    key = key.reshape(batch * shared, 1, length, width)
    value = value.reshape(batch * shared, 1, length, value.shape[-1])
    sinks = None if sinks is None else sinks.float().reshape(1, shared, group, 1)
    if sinks is not None:
        sinks = sinks.expand(batch, -1, -1, -1).reshape(batch * shared, group, 1)
    out = value.new_empty(batch, length, shared, group, value.shape[-1])
    places = out.permute(0, 2, 3, 1, 4)
    factor = width**-0.5 if scale is None else scale
    explicit = softcap is not None or value.shape[-1] != width
    if explicit:
        for band in causal_bands(length) if bands is None else bands:
            seen = key[:, :, band.keys], value[:, :, band.keys]
            found = _explicit(query[:, :, band.rows], *seen, factor, band, softcap, sinks)
            places[:, :, :, band.rows] = found.reshape(batch, shared, group, -1, value.shape[-1])
        return out.flatten(2, 3)
    for run in [None] if bands is None else runs(bands):
        if run is None or is_causal(run):
            rows = slice(0, length if run is None else run[-1].rows.stop)
            # The kernel walks keys faster where a head's rows are adjacent.
            mine, seen = query[:, :, rows].contiguous(), (key[:, :, rows].contiguous(), value[:, :, rows].contiguous())
            found = _kernel(mine, *seen, factor, None, True, sinks)
        else:
            rows = slice(run[0].rows.start, run[-1].rows.stop)
            found = _shifted(query[:, :, rows], key, value, factor, run, sinks)
        places[:, :, :, rows] = found.reshape(batch, shared, group, -1, width)
    return out.flatten(2, 3)


def _shifted(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    run: list[Band],
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The bands of a run as one batch: overlapping views of the keys, no copies. Returns [N, group, rows, d]."""
    first, count = run[0], len(run)
    size = first.keys.stop - first.keys.start
    step = first.rows.stop - first.rows.start
    mask = first.whole()
    out = torch.empty_like(query)
    for number in range(query.shape[0]):
        keys, values = (
            x[number, 0, first.keys.start : run[-1].keys.stop].unfold(0, size, step).transpose(1, 2).unsqueeze(1)
            for x in (key, value)
        )
        rows = query[number].reshape(-1, count, step, query.shape[-1]).transpose(0, 1)
        found = _kernel(rows, keys, values, scale, mask, False, None if sinks is None else sinks[number])
        out[number] = found.transpose(0, 1).flatten(1, 2)
    return out


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """torch's own kernel on query [N, group, rows, d], key and value [N, 1, keys, d], sinks [N or none, group, 1]."""
    group = query.shape[1]
    key, value = key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)
    if sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    found, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    share = torch.sigmoid(total.float() - sinks).unsqueeze(-1)
    weighted: torch.Tensor = (found.float() * share).to(value.dtype)
    return weighted


def _explicit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    band: Band,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The same with the scores in memory, a few rows at a time: where no kernel computes them."""
    count, group, rows, width = query.shape
    keys = key.shape[2]
    turned = key[:, 0].transpose(1, 2)
    out = value.new_empty(count, group, rows, value.shape[-1])
    step = max(1, _SCORES // (count * group * keys))
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        packed = query[:, :, some].reshape(count, -1, width)
        factor = scale if softcap is None else scale / softcap
        scores = torch.baddbmm(packed.new_empty(1, 1, 1), packed, turned, beta=0, alpha=factor).float()
        if softcap is not None:
            scores.tanh_().mul_(softcap)
        scores = scores.view(count, group, -1, keys)
        if band.mask is not None:
            scores[..., band.open :].masked_fill_(~band.mask[some], float("-inf"))
        if softcap is None or softcap > _SAFE_EXPONENT or sinks is not None:
            top = scores.amax(-1, keepdim=True)
            if sinks is not None:
                top = torch.maximum(top, sinks.unsqueeze(-1))
            total = scores.sub_(top).exp_().sum(-1, keepdim=True)
            if sinks is not None:
                total += torch.exp(sinks.unsqueeze(-1) - top)
        else:
            total = scores.exp_().sum(-1, keepdim=True)
        found = torch.bmm(scores.view(count, -1, keys).to(value.dtype), value[:, 0])
        out[:, :, some] = found.view(count, group, -1, value.shape[-1]) / total
    return out
