"""What processes that share a sequence send one another inside attention, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

# Newer torch names, and the ones that it warns about.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Gathered(torch.autograd.Function):
    """[...] of each process to [n, ...]; the gradient is summed over processes, and each gets its own part's."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        count = dist.get_world_size(group)
        # One after the other in the first dimension: gloo knows no other form.
        found = part.new_empty((count * part.shape[0], *part.shape[1:]))
        _ALL_GATHER(found, part.contiguous(), group=group)
        return found.view(count, *part.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = upstream
        found = gradient.new_empty(gradient.shape[1:])
        _REDUCE_SCATTER(found, gradient.contiguous().flatten(0, 1), group=ctx.group)
        return found, None


class _Exchanged(torch.autograd.Function):
    """[n, ...], slice i for process i, to [n, ...] with slice i from process i. It is its own inverse."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchanged(upstream[0], ctx.group), None


def _exchanged(parts: torch.Tensor, group: Any) -> torch.Tensor:
    parts = parts.contiguous()
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts, group=group)
    return found


def gather(part: torch.Tensor, group: Any) -> torch.Tensor:
    """Every process's tensor of one shape, [n, ...], in every process."""
    found: torch.Tensor = _Gathered.apply(part, group)  # type: ignore[no-untyped-call]
    return found


def tokens_for_heads(part: torch.Tensor, group: Any) -> torch.Tensor:
    """All heads of a stretch of tokens [B, H, T/n, D] to some heads of all tokens [B, H/n, T, D]."""
    count = dist.get_world_size(group)
    rows, heads, tokens, width = part.shape
    sent = part.reshape(rows, count, heads // count, tokens, width).transpose(0, 1)
    found: torch.Tensor = _Exchanged.apply(sent, group)  # type: ignore[no-untyped-call]
    return found.permute(1, 2, 0, 3, 4).reshape(rows, heads // count, count * tokens, width)


def heads_for_tokens(part: torch.Tensor, group: Any) -> torch.Tensor:
    """The inverse of `tokens_for_heads`."""
    count = dist.get_world_size(group)
    rows, heads, tokens, width = part.shape
    sent = part.reshape(rows, heads, count, tokens // count, width).permute(2, 0, 1, 3, 4)
    found: torch.Tensor = _Exchanged.apply(sent, group)  # type: ignore[no-untyped-call]
    return found.transpose(0, 1).reshape(rows, count * heads, tokens // count, width)
