"""The middle of a long text under a lambda-shaped mask, in parts that need no mask, without gradients.

For t queries the window falls into three parts: a triangle of the queries' own keys; a rectangle that all of them see;
and a triangle of the oldest keys, which is causal when queries and keys are read backwards. Torch's kernel gives each
part's output and the logarithm of its sum, the few far sinks are summed by hand, and the parts are merged by
weight. Only what is visible is computed: against a kernel with a mask that is a third to a half of the time saved.

Shapes and names as in ctxforge_lambda.
"""

from __future__ import annotations

import torch

from .ctxforge_attention import Call
from .ctxforge_kernels import fused_attention, has_kernel

# Queries of a block; blocks of 128 to 512 take about the same time.
BLOCK = 256


def serves(call: Call) -> bool:
    """Whether a kernel can compute this call, and nobody needs gradients."""
    states = (call.query, call.key, call.value)
    return (
        has_kernel(call.query, call.value)
        and not (torch.is_grad_enabled() and any(part.requires_grad for part in states))
        and call.mask is None
        and call.softcap is None
        and call.sinks is None
        and not call.dropout
    )


def banded(
    call: Call,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    far: tuple[torch.Tensor, torch.Tensor] | None,
    output: torch.Tensor,
) -> None:
    """Write attention's output [B, H, t, D] of t queries with a full window each into `output`.

    Args:
        call: for its scaling.
        query: rotated, [B, H, t, D], t at most half the window.
        key, value: [B, K, W - 1 + t, D], rotated as the queries are; the last t are the queries' own.
        window: W.
        far: scores [B, H, t, n] and values [B, K, n, D] of the sinks out of the window; None for none.
        output: [B, H, t, D].
    """
    rows, heads, count, dims = query.shape
    groups, work = heads // key.shape[1], torch.promote_types(value.dtype, torch.float32)
    query, key = query.to(value.dtype), key.to(value.dtype)
    own, oldest, middle = slice(window - 1, None), slice(0, count), slice(count, window - 1)
    parts, totals = [], []
    for which, backwards in ((own, False), (oldest, True)):
        # Key heads are rows, each with the queries of its group: no key is copied for the heads that share it.
        ends = [query, key[:, :, which], value[:, :, which]]
        ends = [states.flip(2) for states in ends] if backwards else ends
        ends = [states.reshape(rows * key.shape[1], -1, count, dims) for states in ends]
        found, total = fused_attention(
            *(states.expand(-1, groups, -1, -1) for states in ends), causal=True, scaling=call.scaling
        )
        found, total = found.reshape(rows, heads, count, dims), total.reshape(rows, heads, count)
        parts.append(found.flip(2) if backwards else found)
        totals.append(total.flip(2) if backwards else total)
    if middle.stop > middle.start:
        grouped = query.reshape(rows, key.shape[1], groups * count, dims)
        found, total = fused_attention(
            grouped, key[:, :, middle], value[:, :, middle], causal=False, scaling=call.scaling
        )
        parts.append(found.reshape(rows, heads, count, dims))
        totals.append(total.reshape(rows, heads, count))
    if far is not None:
        scores = far[0].to(work) * call.scaling
        summed = scores.logsumexp(dim=3)
        weights = (scores - summed[..., None]).exp().reshape(rows, key.shape[1], groups * count, -1)
        parts.append((weights @ far[1].to(work)).reshape(rows, heads, count, dims))
        totals.append(summed)
    shares = torch.stack([total.to(work) for total in totals]).softmax(dim=0)
    merged = output if output.dtype == work else torch.empty_like(output, dtype=work)
    torch.mul(parts[0], shares[0][..., None], out=merged)
    for part, share in zip(parts[1:], shares[1:], strict=True):
        merged.addcmul_(part.to(work), share[..., None])
    if merged is not output:
        output.copy_(merged)
