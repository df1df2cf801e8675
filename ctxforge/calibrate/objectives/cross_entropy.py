"""Linear head and cross-entropy together, a slice of rows at a time: [L, V] never exists, forward or backward.

The usual loss keeps logits, their float32 copy, the log-softmax and its gradient: about 14 L V bytes with bfloat16
weights, 115 GB for 64k tokens and a vocabulary of 128k. Here the forward pass computes the gradient for the hidden
states (and the head) of each slice while its softmax is at hand, and the backward pass only scales it. The idea is that
of Liger's and Apple's fused losses (arXiv 2410.10989, section 3; 2411.09009); this is plain torch, for any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ctxforge.calibrate.objectives.head import AffineForm
from ctxforge.calibrate.objectives.kernels import AffineKernel, Kernel, OwnCodeKernel
from ctxforge.errors import UsageError

IGNORE = -100
SLICE_BYTES = 1 << 28

# Index of tokens among all rows, int64 [n], and their losses [n], to their weights [n].
Weigher = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TokenLosses(NamedTuple):
    """What a batch cost.

    Attributes:
        loss: sum(weight * loss) / denominator, a scalar with a gradient.
        losses: of every row in nats, unweighted, in the targets' shape, without a gradient; 0 where there is no target.
        weights: of every row, in the same shape; 0 where there is no target.
        apart: sum over tokens of the distance to the states that were held to, a scalar without a gradient; None where
            there were none.
    """

    loss: torch.Tensor
    losses: torch.Tensor
    weights: torch.Tensor
    apart: torch.Tensor | None = None


def rows_per_slice(vocabulary: int, slice_bytes: int = SLICE_BYTES) -> int:
    """Rows whose float32 logits fit `slice_bytes`, at least one."""
    return max(1, slice_bytes // (4 * vocabulary))


def sliced_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    denominator: float,
    *,
    bias: torch.Tensor | None = None,
    form: AffineForm | None = None,
    weights: torch.Tensor | Weigher | None = None,
    ignore_index: int = IGNORE,
    slice_rows: int | None = None,
) -> TokenLosses:
    """Weighted cross-entropy of a linear head, with gradients for `hidden`, `weight` and `bias` where they want one.

    The softmax is taken in float32 (float64 for float64 inputs) whatever the weights' dtype. Rows without a target or
    with weight 0 cost nothing. The result can be differentiated once.

    Args:
        hidden: last hidden states, after the final norm, [..., d].
        weight: of the head, [V, d].
        targets: the token that each row predicts, int64 [...]; `ignore_index` for none.
        denominator: what the sum is divided by: see `counts`.
        bias: of the head, [V].
        form: factor and soft cap; None for neither.
        weights: of the rows, [...], constants to the gradient; or a function of (index of rows, their losses).
        ignore_index: the target of rows that don't count.
        slice_rows: rows in a slice; None for as many as fit `SLICE_BYTES`.

    Raises:
        UsageError: shapes that don't fit, a target outside the vocabulary, a denominator that is not positive, weights
            that want a gradient.
    """
    _check(hidden, targets, denominator, weights, weight.shape[0], ignore_index)
    wanted = torch.is_grad_enabled()
    kernel = AffineKernel(
        form or AffineForm(),
        weight.detach(),
        None if bias is None else bias.detach(),
        weight_grad=wanted and weight.requires_grad,
        bias_grad=wanted and bias is not None and bias.requires_grad,
    )
    parameters = [weight] if bias is None else [weight, bias]
    rows = slice_rows or rows_per_slice(weight.shape[0])
    return _apply(hidden, kernel, parameters, targets, denominator, weights, ignore_index, rows)


def sliced_cross_entropy_of(
    hidden: torch.Tensor,
    logits: Callable[[torch.Tensor], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    targets: torch.Tensor,
    denominator: float,
    *,
    vocabulary: int,
    weights: torch.Tensor | Weigher | None = None,
    ignore_index: int = IGNORE,
    slice_rows: int | None = None,
) -> TokenLosses:
    """As `sliced_cross_entropy`, for a head of any form.

    Args:
        logits: rows [n, d] to logits [n, V], differentiable.
        parameters: all that `logits` uses and that want a gradient.
        vocabulary: V.
    """
    _check(hidden, targets, denominator, weights, vocabulary, ignore_index)
    used = [p for p in parameters if p.requires_grad] if torch.is_grad_enabled() else []
    kernel = OwnCodeKernel(logits, used)
    # Autograd keeps several copies of a slice's logits.
    rows = slice_rows or rows_per_slice(vocabulary, SLICE_BYTES // 3)
    return _apply(hidden, kernel, used, targets, denominator, weights, ignore_index, rows)


def _apply(
    hidden: torch.Tensor,
    kernel: Kernel,
    parameters: Sequence[torch.Tensor],
    targets: torch.Tensor,
    denominator: float,
    weights: torch.Tensor | Weigher | None,
    ignore_index: int,
    slice_rows: int,
) -> TokenLosses:
    flat = targets.reshape(-1)
    counted = flat != ignore_index
    if isinstance(weights, torch.Tensor):
        given = weights.reshape(-1)
        counted = counted & (given != 0)
        weigh: Weigher = lambda index, _losses: given[index]  # noqa: E731
    else:
        weigh = weights or (lambda _index, losses: torch.ones_like(losses))
    # The meta device, on which memory is rehearsed, knows no values: there every row counts.
    index = torch.arange(flat.shape[0], device="meta") if flat.is_meta else counted.nonzero()[:, 0]
    job = _Job(kernel, flat, index, weigh, denominator, slice_rows)
    rows = hidden.reshape(-1, hidden.shape[-1])
    loss, losses, used = _Sliced.apply(rows, job, *parameters)  # type: ignore[no-untyped-call]
    return TokenLosses(loss, losses.reshape(targets.shape), used.reshape(targets.shape))


@dataclass(frozen=True)
class _Job:
    """What a call computes, beside tensors with gradients."""

    kernel: Kernel
    targets: torch.Tensor
    index: torch.Tensor
    weigh: Weigher
    denominator: float
    slice_rows: int


class _Sliced(torch.autograd.Function):
    """Rows [N, d] and the head's parameters to loss, losses [N] and weights [N]."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, job: _Job, *_parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows_grad = bool(ctx.needs_input_grad[0])
        gradient = torch.zeros_like(rows) if rows_grad else None
        wide = torch.promote_types(rows.dtype, torch.float32)
        losses = torch.zeros(rows.shape[0], dtype=wide, device=rows.device)
        weights = torch.zeros_like(losses)
        for start in range(0, job.index.shape[0], job.slice_rows):
            part = job.index[start : start + job.slice_rows]

            def weigh(found: torch.Tensor, part: torch.Tensor = part) -> torch.Tensor:
                used = job.weigh(part, found).to(found)
                weights[part] = used
                return used / job.denominator

            found, _, grads = job.kernel.run(rows[part], job.targets[part], weigh, rows_grad=rows_grad)
            losses[part] = found.to(wide)
            if gradient is not None and grads is not None:
                gradient[part] = grads
        kept = [gradient, *(job.kernel.gradients() if any(ctx.needs_input_grad[2:]) else [])]
        ctx.save_for_backward(*kept)
        ctx.parameters = len(_parameters)
        ctx.mark_non_differentiable(losses, weights)
        return (losses * weights).sum() / job.denominator, losses, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = [None if part is None else part * upstream[0].to(part.dtype) for part in ctx.saved_tensors]
        missing = [None] * (1 + ctx.parameters - len(found))
        return (found[0], None, *found[1:], *missing)


def _check(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    denominator: float,
    weights: torch.Tensor | Weigher | None,
    vocabulary: int,
    ignore_index: int,
) -> None:
    def demand(fine: bool, cause: str, remedy: str) -> None:
        if not fine:
            raise UsageError(cause, remedy)

    shapes = f"hidden states {list(hidden.shape)} and targets {list(targets.shape)}"
    demand(hidden.shape[:-1] == targets.shape, f"{shapes} don't belong together", "give one target for each row")
    demand(denominator > 0, f"a loss can't be divided by {denominator}", "skip a batch in which no token counts")
    if isinstance(weights, torch.Tensor):
        fits = weights.shape == targets.shape
        demand(fits, f"weights {list(weights.shape)} for targets {list(targets.shape)}", "give one weight for each row")
        demand(not weights.requires_grad, "token weights want a gradient", "detach them: a weight is a constant")
    if targets.numel() and targets.device.type == "cpu":
        # Elsewhere a wrong target fails in the kernel: looking for it here would wait for the device.
        outside = targets[(targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))]
        wrong = f"token {int(outside[0])}" if outside.numel() else ""
        demand(not wrong, f"{wrong} is outside the vocabulary of {vocabulary}", "use the model's own tokenizer")
