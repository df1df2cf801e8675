"""The sliced loss against the plain one: whole logits, autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.objectives.cross_entropy import (
    IGNORE,
    rows_per_slice,
    sliced_cross_entropy,
    sliced_cross_entropy_of,
)
from ctxforge.calibrate.objectives.head import AffineForm
from ctxforge.errors import UsageError


def problem(rows: int, width: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    targets = torch.randint(0, vocabulary, (rows,), generator=draw)
    targets[torch.rand(rows, generator=draw) < 0.25] = IGNORE
    return {
        "hidden": normal(rows, width).requires_grad_(),
        "weight": normal(vocabulary, width).requires_grad_(),
        "bias": normal(vocabulary).requires_grad_(),
        "targets": targets,
        "weights": torch.rand(rows, generator=draw).to(dtype) * 5,
    }


def plain(given: dict[str, Any], form: AffineForm, denominator: float, *, bias: bool, weighted: bool) -> torch.Tensor:
    scores = F.linear(given["hidden"], given["weight"], given["bias"] if bias else None)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * form.scale
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    losses = F.cross_entropy(scores, given["targets"], reduction="none", ignore_index=IGNORE)
    return ((losses * given["weights"]).sum() if weighted else losses.sum()) / denominator


def gradients(loss: torch.Tensor, given: dict[str, Any], names: list[str]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(3 * loss, [given[name] for name in names], retain_graph=True))


@given(
    rows=st.integers(1, 17),
    width=st.integers(1, 9),
    vocabulary=st.integers(2, 33),
    slice_rows=st.integers(1, 20),
    softcap=st.sampled_from([None, 3.0, 30.0]),
    scale=st.sampled_from([1.0, 0.0625, 2.0]),
    bias=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_slice(
    rows: int,
    width: int,
    vocabulary: int,
    slice_rows: int,
    softcap: float | None,
    scale: float,
    bias: bool,
    weighted: bool,
    seed: int,
) -> None:
    one, form = problem(rows, width, vocabulary, seed), AffineForm(scale, softcap)
    names = ["hidden", "weight", *(["bias"] if bias else [])]
    expected = plain(one, form, 7.0, bias=bias, weighted=weighted)
    found = sliced_cross_entropy(
        one["hidden"],
        one["weight"],
        one["targets"],
        7.0,
        bias=one["bias"] if bias else None,
        form=form,
        weights=one["weights"] if weighted else None,
        slice_rows=slice_rows,
    )
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients(found.loss, one, names), gradients(expected, one, names), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("form", [AffineForm(), AffineForm(0.5, 2.0)])
def test_gradcheck_in_double(form: AffineForm) -> None:
    one = problem(7, 3, 5, seed=1, dtype=torch.float64)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return sliced_cross_entropy(
            hidden, weight, one["targets"], 4.0, bias=bias, form=form, weights=one["weights"], slice_rows=2
        ).loss

    assert torch.autograd.gradcheck(loss, (one["hidden"], one["weight"], one["bias"]))


def test_a_second_derivative_is_refused() -> None:
    one = problem(4, 3, 5, seed=1)
    loss = sliced_cross_entropy(one["hidden"], one["weight"], one["targets"], 1.0).loss
    factor = torch.ones((), requires_grad=True)
    (first,) = torch.autograd.grad(loss * factor, [one["hidden"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_any_head_through_its_own_code() -> None:
    one = problem(23, 6, 19, seed=3)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return torch.sinh(F.linear(rows, one["weight"]) / 4) * one["bias"]

    names = ["hidden", "weight", "bias"]
    losses = F.cross_entropy(logits(one["hidden"]), one["targets"], reduction="none", ignore_index=IGNORE)
    expected = (losses * one["weights"]).sum() / 5
    found = sliced_cross_entropy_of(
        one["hidden"],
        logits,
        [one["weight"], one["bias"]],
        one["targets"],
        5.0,
        vocabulary=19,
        weights=one["weights"],
        slice_rows=4,
    )
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients(found.loss, one, names), gradients(expected, one, names), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_weights_may_depend_on_the_losses_and_are_constants() -> None:
    one = problem(12, 4, 9, seed=5)
    scores = F.linear(one["hidden"], one["weight"])
    losses = F.cross_entropy(scores, one["targets"], reduction="none", ignore_index=IGNORE)
    weights = (losses.detach() / 2).exp()
    expected = (losses * weights).sum() / 3
    found = sliced_cross_entropy(
        one["hidden"], one["weight"], one["targets"], 3.0, weights=lambda _i, loss: (loss / 2).exp(), slice_rows=5
    )
    (ours,), (theirs,) = (gradients(loss, one, ["hidden"]) for loss in (found.loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # Negative control: differentiating through the weights gives another gradient.
    (wrong,) = gradients((losses * (losses / 2).exp()).sum() / 3, one, ["hidden"])
    assert (wrong - theirs).abs().max() > 0.1 * theirs.abs().max()
    torch.testing.assert_close(found.losses, losses)
    counted = one["targets"] != IGNORE
    torch.testing.assert_close(found.weights[counted], weights[counted])
    assert not found.weights[~counted].any()


def test_bfloat16_weights_have_a_float32_softmax() -> None:
    one = problem(64, 32, 500, seed=2)
    low = {name: one[name].detach().bfloat16().requires_grad_() for name in ("hidden", "weight")}
    found = sliced_cross_entropy(low["hidden"], low["weight"], one["targets"], 64.0, slice_rows=7)
    exact = {**one, **{name: part.detach().float().requires_grad_() for name, part in low.items()}}
    scores = F.linear(low["hidden"], low["weight"]).float()
    expected = F.cross_entropy(scores, one["targets"], reduction="sum", ignore_index=IGNORE) / 64
    # The logits themselves are bfloat16 in both; nothing after them may be.
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-6)
    ours = gradients(found.loss, low, ["hidden", "weight"])
    theirs = gradients(plain(exact, AffineForm(), 64.0, bias=False, weighted=False), exact, ["hidden", "weight"])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - other).norm() < 1e-2 * other.norm()


def test_a_frozen_head_gets_no_gradient_and_evaluation_none_at_all() -> None:
    one = problem(6, 3, 5, seed=1)
    frozen = one["weight"].detach()
    found = sliced_cross_entropy(one["hidden"], frozen, one["targets"], 1.0)
    found.loss.backward()
    assert one["hidden"].grad.abs().max() > 0
    assert frozen.grad is None
    with torch.no_grad():
        quiet = sliced_cross_entropy(one["hidden"], one["weight"], one["targets"], 1.0)
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, found.loss.detach())


def test_nothing_counts() -> None:
    one = problem(6, 3, 5, seed=1)
    found = sliced_cross_entropy(one["hidden"], one["weight"], torch.full((6,), IGNORE), 1.0)
    found.loss.backward()
    assert float(found.loss.detach()) == 0
    assert not one["hidden"].grad.any()
    assert not one["weight"].grad.any()


def test_whole_logits_are_never_allocated() -> None:
    """The largest tensor that the loss makes holds one slice."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, torch.Tensor):
                    largest = max(largest, part.numel())
            return out

    one = problem(512, 8, 1000, seed=1)
    with Watch():
        sliced_cross_entropy(one["hidden"], one["weight"], one["targets"], 1.0, slice_rows=16).loss.backward()
    assert largest == 16 * 1000
    with Watch():
        plain(one, AffineForm(), 1.0, bias=False, weighted=False).backward()
    assert largest == 512 * 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": torch.zeros(5, dtype=torch.long)}, "don't belong together"),
        ({"targets": torch.full((6,), 5)}, "outside the vocabulary of 5"),
        ({"denominator": 0.0}, "divided by 0"),
        ({"weights": torch.ones(5)}, "weights [5]"),
        ({"weights": torch.ones(6, requires_grad=True)}, "want a gradient"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    one = problem(6, 3, 5, seed=1)
    arguments = {"targets": torch.zeros(6, dtype=torch.long), "denominator": 1.0, **change}
    with pytest.raises(UsageError) as caught:
        sliced_cross_entropy(one["hidden"], one["weight"], **arguments)
    assert words in caught.value.cause


def test_rows_per_slice() -> None:
    assert rows_per_slice(128_256) == 523
    assert rows_per_slice(1 << 40) == 1
