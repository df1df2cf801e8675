"""Loss and gradient of one slice of rows: what `cross_entropy` runs slice after slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from ctxforge.calibrate.objectives.head import AffineForm

Weigh = Callable[[torch.Tensor], torch.Tensor]


class Kernel(Protocol):
    """Computes slices, and gathers the gradients of the head's parameters over them."""

    def run(
        self, rows: torch.Tensor, targets: torch.Tensor, weigh: Weigh, *, rows_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Losses [n], weights [n] and the gradient [n, d] of sum(weight * loss) for rows [n, d].

        Args:
            rows: hidden states.
            targets: token ids, int64 [n].
            weigh: the weights [n] of the losses [n]; they are constants to the gradient.
            rows_grad: whether the gradient for `rows` is wanted; None is returned otherwise.
        """
        ...

    def gradients(self) -> list[torch.Tensor | None]:
        """Gradients for the head's parameters, of all slices so far, in the parameters' dtype."""
        ...


class AffineKernel:
    """A head of `AffineForm`: softmax and gradient are written into the memory of the logits.

    A slice of n rows takes 4 n V bytes, and 2 n V more with 16-bit weights; twice the former with a soft cap.

    Args:
        form: factor and cap.
        weight, bias: [V, d] and [V] or None.
        weight_grad, bias_grad: whether their gradients are wanted: they are gathered in float32, 4 V d bytes.
    """

    def __init__(
        self,
        form: AffineForm,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        weight_grad: bool,
        bias_grad: bool,
    ) -> None:
        self.form, self.weight, self.bias = form, weight, bias
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.weight_sum = torch.zeros_like(weight, dtype=wide) if weight_grad else None
        self.bias_sum = torch.zeros_like(bias, dtype=wide) if bias_grad and bias is not None else None

    def run(
        self, rows: torch.Tensor, targets: torch.Tensor, weigh: Weigh, *, rows_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """See `Kernel.run`."""
        narrow = F.linear(rows, self.weight, self.bias)
        dtype, cap = narrow.dtype, self.form.softcap
        scores = narrow.to(torch.promote_types(dtype, torch.float32))
        del narrow
        if self.form.scale != 1.0:
            scores.mul_(self.form.scale)
        slope = None
        if cap is not None:
            scores.div_(cap).tanh_()
            slope = scores.square().neg_().add_(1)
            scores.mul_(cap)
        scores.sub_(scores.amax(-1, keepdim=True))
        at_target = scores.gather(-1, targets[:, None])
        total = scores.exp_().sum(-1, keepdim=True)
        losses = (total.log() - at_target)[:, 0]
        weights = weigh(losses)
        if not rows_grad and self.weight_sum is None and self.bias_sum is None:
            return losses, weights, None
        grads = scores.mul_(weights[:, None] / total)
        grads.scatter_add_(-1, targets[:, None], -weights[:, None].to(grads.dtype))
        if slope is not None:
            grads.mul_(slope)
        if self.form.scale != 1.0:
            grads.mul_(self.form.scale)
        if self.bias_sum is not None:
            self.bias_sum += grads.sum(0)
        grads = grads.to(dtype)
        if self.weight_sum is not None:
            self.weight_sum += grads.T @ rows.to(dtype)
        return losses, weights, (grads @ self.weight.to(dtype)).to(rows.dtype) if rows_grad else None

    def gradients(self) -> list[torch.Tensor | None]:
        """See `Kernel.gradients`: of the weight, and of the bias where there is one."""
        found = [None if self.weight_sum is None else self.weight_sum.to(self.weight.dtype)]
        if self.bias is not None:
            found.append(None if self.bias_sum is None else self.bias_sum.to(self.bias.dtype))
        return found


class OwnCodeKernel:
    """Any head: the model's own code on a slice, and autograd through that.

    Args:
        logits: rows [n, d] to logits [n, V].
        parameters: those that `logits` uses and that are trained.
    """

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor], parameters: Sequence[torch.Tensor]) -> None:
        self.logits, self.parameters = logits, list(parameters)
        self.sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in self.parameters]

    def run(
        self, rows: torch.Tensor, targets: torch.Tensor, weigh: Weigh, *, rows_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """See `Kernel.run`."""
        with torch.set_grad_enabled(rows_grad or bool(self.parameters)):
            leaf = rows.detach().requires_grad_(rows_grad)
            scores = self.logits(leaf)
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            losses = F.cross_entropy(scores, targets, reduction="none")
            weights = weigh(losses.detach())
            wanted = [*([leaf] if rows_grad else []), *self.parameters]
            if not wanted:
                return losses, weights, None
            grads = list(torch.autograd.grad((losses * weights).sum(), wanted, allow_unused=True))
        rows_gradient = grads.pop(0) if rows_grad else None
        for total, grad in zip(self.sums, grads, strict=True):
            if grad is not None:
                total += grad
        return losses.detach(), weights, rows_gradient

    def gradients(self) -> list[torch.Tensor | None]:
        """See `Kernel.gradients`."""
        return [total.to(p.dtype) for total, p in zip(self.sums, self.parameters, strict=True)]
