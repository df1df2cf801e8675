"""Attention over several strided pieces of a call, merged by their softmax denominators, in one differentiable step.

A query that stands in several pieces attends to the union of their keys, a key that it meets c times counting c times:
with out_p and lse_p of piece p alone,

    lse = log sum_p exp(lse_p),   out = sum_p exp(lse_p - lse) out_p

which is softmax over all of them at once. Backwards, the weight of a key in any piece is exp(score - lse), and the
gradient of a score is that weight times (dout . v - dout . out + dlse), so each piece is gone through once more with
the merged out and lse; nothing of the size of queries times keys is kept. Pieces are computed by torch's fused kernels
(ctxforge_kernels); backwards, on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .ctxforge_attention import Call
from .ctxforge_kernels import fused_attention, has_kernel

# Queries whose scores stand in memory together where there is no fused kernel.
_BLOCK = 512
_FUSED_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass(frozen=True)
class Piece:
    """Queries that attend to keys, both strided.

    Attributes:
        heads: of the query.
        queries, keys: indices along the sequence.
        causal: the i-th of these queries sees the first i + 1 of these keys, of which there are as many; otherwise
            each sees all.
        first: no piece before this one has any of these queries, so there is nothing to merge with. Either
            no piece is a first one, or each query of each head stands in one.
    """

    heads: slice
    queries: slice
    keys: slice
    causal: bool
    first: bool = False


def is_regular(call: Call) -> bool:
    """Whether pieces can serve a call: all rows at the same positions, one after another, only the future hidden.

    Then the queries are all the keys' tokens, or the last one alone.
    """
    total, count = call.query.shape[2], call.key.shape[2]
    if call.mask is not None or call.dropout > 0 or total not in (1, count):
        return False
    wanted = call.key_positions[0, 0] + torch.arange(count, device=call.key_positions.device)
    return bool((call.key_positions == wanted).all()) and bool((call.query_positions == wanted[-total:]).all())


def with_sinks(call: Call, output: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """A merged output once the call's sinks, if any, have taken their weight: terms of the denominator alone."""
    if call.sinks is None:
        return output
    left = torch.sigmoid(total - call.sinks.to(total.dtype)[None, :, None])
    return output * left[..., None].to(output.dtype)


def attend_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pieces: Sequence[Piece],
    *,
    scaling: float,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged output [B, H, T, Dv] in the value's dtype and logarithm of the denominators [B, H, T], float32 at least.

    Each query of each head must stand in one piece at least, with a key.

    Args:
        query, key, value: [B, H, T, D], [B, K, S, D], [B, K, S, Dv], of one dtype.
        pieces: see `Piece`.
        scaling: factor on q.k.
        softcap: scores become softcap * tanh(score / softcap).
    """
    merged: tuple[torch.Tensor, torch.Tensor] = _Merged.apply(query, key, value, tuple(pieces), scaling, softcap)
    return merged


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: tuple[Piece, ...],
        scaling: float,
        softcap: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        precise = torch.promote_types(query.dtype, torch.float32)
        rows, heads, count, _ = query.shape
        # Tokens before heads, as the layer wants it.
        output = value.new_empty(rows, count, heads, value.shape[3], dtype=precise).transpose(1, 2)
        total = query.new_full((rows, heads, count), -torch.inf, dtype=precise)
        if not any(piece.first for piece in pieces):
            output.zero_()
        for piece in pieces:
            q, k, v = _take(piece, query, key, value)
            part, lse = _attend(q, k, v, piece.causal, scaling, softcap)
            at = (slice(None), piece.heads, piece.queries)
            merged, before = output[at], total[at]
            part, lse = part.reshape(merged.shape), lse.reshape(before.shape)
            if piece.first:
                merged.copy_(part)
                before.copy_(lse)
                continue
            after = torch.logaddexp(before, lse)
            merged.mul_((before - after).exp_()[..., None])
            merged.addcmul_(part.to(precise), (lse - after).exp_()[..., None])
            before.copy_(after)
        output = output.to(value.dtype)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.pieces, ctx.scaling, ctx.softcap = pieces, scaling, softcap
        ctx.set_materialize_grads(False)
        return output, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor | None, grad_total: torch.Tensor | None) -> Any:
        query, key, value, output, total = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        grads = [torch.zeros_like(states, dtype=total.dtype) for states in (query, key, value)]
        for piece in ctx.pieces:
            at = (slice(None), piece.heads, piece.queries)
            q, k, v = _take(piece, query, key, value)
            found = _attend_backward(
                (
                    grad_output[at].reshape(*q.shape[:3], -1),
                    None if grad_total is None else grad_total[at].reshape(q.shape[:3]),
                ),
                (q, k, v, output[at].reshape(*q.shape[:3], -1), total[at].reshape(q.shape[:3])),
                piece.causal,
                ctx.scaling,
                ctx.softcap,
            )
            grads[0][at] += found[0].reshape(grads[0][at].shape)
            heads = _key_heads(piece, query, key)
            for grad, part in zip(grads[1:], found[1:], strict=True):
                wanted = grad[:, :, piece.keys]
                parts = part.to(grad.dtype).reshape(wanted.shape[0], len(heads), *wanted.shape[2:])
                wanted.index_add_(1, torch.tensor(heads, device=wanted.device), parts)
        return (*(grad.to(query.dtype) for grad in grads), None, None, None)


def _key_heads(piece: Piece, query: torch.Tensor, key: torch.Tensor) -> list[int]:
    """The key head of each of the piece's heads."""
    groups = query.shape[1] // key.shape[1]
    return [head // groups for head in range(query.shape[1])[piece.heads]]


def _take(
    piece: Piece, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This piece's query, key and value with as many heads each, [rows, h, t or s, D]; copied only where they must be.

    Where each key head serves as many of the piece's heads, in turn, key heads are rows: there may be more than B.
    """
    q, keys = query[:, piece.heads, piece.queries], (key[:, :, piece.keys], value[:, :, piece.keys])
    heads = _key_heads(piece, query, key)
    distinct = sorted(set(heads))
    shared = len(heads) // len(distinct)
    step = distinct[1] - distinct[0] if len(distinct) > 1 else 1
    stop = distinct[-1] + 1
    if heads != [head for head in range(distinct[0], stop, step) for _ in range(shared)]:
        index = torch.tensor(heads, device=key.device)
        return q, keys[0].index_select(1, index), keys[1].index_select(1, index)
    k, v = (states[:, distinct[0] : stop : step] for states in keys)
    if shared == 1:
        return q, k, v
    return (
        q.reshape(-1, shared, *q.shape[2:]),
        k.reshape(-1, 1, *k.shape[2:]).expand(-1, shared, -1, -1),
        v.reshape(-1, 1, *v.shape[2:]).expand(-1, shared, -1, -1),
    )


def _is_fused(q: torch.Tensor, v: torch.Tensor, softcap: float | None) -> bool:
    return softcap is None and has_kernel(q, v)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scaling: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and logarithm of the denominators of one piece alone."""
    if _is_fused(q, v, softcap):
        return fused_attention(q, k, v, causal=causal, scaling=scaling)
    parts, sums = [], []
    for start in range(0, q.shape[2], _BLOCK):
        rows = slice(start, start + _BLOCK)
        seen = min(start + _BLOCK, k.shape[2]) if causal else k.shape[2]
        scores, _ = _scores(q[:, :, rows], k[:, :, :seen], start if causal else None, scaling, softcap)
        sums.append(scores.logsumexp(dim=-1))
        weights = (scores - sums[-1][..., None]).exp()
        parts.append(weights.to(v.dtype) @ v[:, :, :seen])
    return torch.cat(parts, dim=2), torch.cat(sums, dim=2)


def _attend_backward(
    grads: tuple[torch.Tensor, torch.Tensor | None],
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    causal: bool,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of one piece's query, key and value, from the merged output and denominators."""
    grad_output, grad_total = grads
    q, k, v, output, total = saved
    known = _FUSED_BACKWARD is not None and q.device.type == "cpu"
    if known and _is_fused(q, v, softcap) and grad_total is None:
        grad_q, grad_k, grad_v = _FUSED_BACKWARD(
            grad_output.contiguous(), q, k, v, output.contiguous(), total.contiguous(), 0.0, causal, scale=scaling
        )
        return grad_q, grad_k, grad_v
    shared = (grad_output.to(total.dtype) * output.to(total.dtype)).sum(-1)
    if grad_total is not None:
        shared = shared - grad_total
    grad_q = torch.empty_like(q, dtype=total.dtype)
    grad_k, grad_v = torch.zeros_like(k, dtype=total.dtype), torch.zeros_like(v, dtype=total.dtype)
    for start in range(0, q.shape[2], _BLOCK):
        rows = slice(start, start + _BLOCK)
        seen = min(start + _BLOCK, k.shape[2]) if causal else k.shape[2]
        scores, slope = _scores(q[:, :, rows], k[:, :, :seen], start if causal else None, scaling, softcap)
        weights = (scores - total[:, :, rows, None]).exp()
        grad_v[:, :, :seen] += weights.to(v.dtype).transpose(2, 3) @ grad_output[:, :, rows]
        towards = (grad_output[:, :, rows] @ v[:, :, :seen].transpose(2, 3)).to(total.dtype)
        grad_scores = weights * (towards - shared[:, :, rows, None]) * scaling
        if slope is not None:
            grad_scores = grad_scores * slope
        grad_scores = grad_scores.to(q.dtype)
        grad_q[:, :, rows] = (grad_scores @ k[:, :, :seen]).to(total.dtype)
        grad_k[:, :, :seen] += grad_scores.transpose(2, 3) @ q[:, :, rows]
    return grad_q, grad_k, grad_v


def _scores(
    q: torch.Tensor, k: torch.Tensor, first: int | None, scaling: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores, float32 at least, -inf where hidden, and the soft cap's slope.

    `first` is the index of the first query where these are causal, None where nothing is hidden.
    """
    scores = q @ k.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
    slope = None
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, slope = softcap * bent, 1 - bent**2
    if first is not None:
        rows = first + torch.arange(q.shape[2], device=q.device)
        hidden = torch.arange(k.shape[2], device=q.device)[None, :] > rows[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores, slope
