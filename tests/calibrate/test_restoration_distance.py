"""The distance of hidden states from the source's, and its gradient, against plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens
from ctxforge.calibrate.objectives.restoration import Restored, Teacher, after_layers, distance
from ctxforge.errors import UnsupportedError
from tests.calibrate.run_builders import SIZES

LAYERS, ROWS, LENGTH, WIDTH = 3, 2, 7, 5


def states(seed: int, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Of each layer another size, and of each token."""
    torch.manual_seed(seed)
    sizes = torch.logspace(-2, 2, length)[None, :, None]
    return [(10.0**layer * sizes * torch.randn(ROWS, length, WIDTH)).to(dtype) for layer in range(LAYERS)]


def marked(*counts: int, length: int = LENGTH) -> torch.Tensor:
    return torch.arange(length)[None] < torch.tensor(counts)[:, None]


def by_hand(ours: list[torch.Tensor], theirs: list[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row in range(tokens.shape[0]):
        for token in range(tokens.shape[1]):
            if tokens[row, token]:
                for layer in range(LAYERS):
                    target = theirs[layer][row, token].double()
                    apart = ours[layer][row, token].double() - target
                    total = total + (apart @ apart) / (target @ target) / LAYERS
    return total


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-3)]
)
def test_it_is_what_its_formula_says(dtype: torch.dtype, tolerance: float) -> None:
    """The student's states reach further than the source's, and the second row ends earlier."""
    ours = [one.requires_grad_() for one in states(0, LENGTH + 4, dtype)]
    theirs, tokens = states(1, dtype=dtype), marked(7, 4)
    found = distance(ours, Restored(theirs, tokens, 1.0))
    expected = by_hand(ours, theirs, tokens)
    # Sums are made in float32 at least: what is rounded are the states as given.
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=min(tolerance, 1e-6))
    grads = torch.autograd.grad(3 * found, ours)
    dense = torch.autograd.grad(3 * expected, ours)
    for one, other in zip(grads, dense, strict=True):
        assert one.dtype == dtype
        scale = other.double().norm(dim=-1)
        assert ((one - other).double().norm(dim=-1) <= tolerance * scale).all()
        assert not one[:, LENGTH:].any()
        assert not one[1, 4:].any()
        assert one[1, :4].all()


def test_double_precision_gradient_by_differences() -> None:
    theirs, tokens = states(1, dtype=torch.float64), marked(7, 4)
    ours = [(one + 0.1 * one.abs().mean()).requires_grad_() for one in theirs]
    assert torch.autograd.gradcheck(lambda *given: distance(given, Restored(theirs, tokens, 1.0)), ours)


def test_the_source_itself_is_at_distance_0_and_without_a_gradient() -> None:
    theirs = states(1)
    ours = [one.clone().requires_grad_() for one in theirs]
    found = distance(ours, Restored(theirs, marked(7, 7), 1.0))
    assert float(found.detach()) == 0
    assert not any(one.any() for one in torch.autograd.grad(found, ours))
    # Twice as large is at distance 1, whatever the size of the state.
    doubled = distance([2 * one for one in theirs], Restored(theirs, marked(7, 4), 1.0))
    assert float(doubled) == pytest.approx(11, rel=1e-6)


def test_rows_and_their_padding_add_up() -> None:
    ours, theirs = states(0), states(1)
    whole = distance(ours, Restored(theirs, marked(7, 4), 1.0))
    first = distance([one[:1] for one in ours], Restored([one[:1] for one in theirs], marked(7), 1.0))
    short = [one[1:, :4] for one in theirs]
    second = distance([one[1:] for one in ours], Restored(short, marked(4, length=4), 1.0))
    assert float(first + second) == pytest.approx(float(whole), rel=1e-6)
    # What stands in padding counts nothing; what stands before it does.
    for place, same in ((5, True), (3, False)):
        changed = [one.clone() for one in ours]
        changed[1][1, place] += 100
        found = distance(changed, Restored(theirs, marked(7, 4), 1.0))
        assert (float(found) == float(whole)) is same


def test_a_state_of_zeros_is_finite() -> None:
    theirs = [torch.zeros_like(one) for one in states(1)]
    ours = [one.clone().requires_grad_() for one in theirs]
    found = distance(ours, Restored(theirs, marked(7, 7), 1.0))
    found.backward()
    assert float(found.detach()) == 0
    assert all(math.isfinite(float(one.grad.abs().max())) for one in ours if one.grad is not None)


def test_nothing_is_kept_but_the_states_and_a_number_a_token() -> None:
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ours = [one.requires_grad_() for one in states(0, dtype=torch.bfloat16)]
    theirs = states(1, dtype=torch.bfloat16)
    given = {one.untyped_storage().data_ptr() for one in (*ours, *theirs)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        distance(ours, Restored(theirs, marked(7, 7), 1.0)).backward()
    extra = sum(size for place, size in kept.items() if place not in given)
    assert given <= kept.keys()
    assert extra == LAYERS * ROWS * LENGTH * 4


def model(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


def test_it_is_weighed_and_divided_beside_the_loss() -> None:
    student, teacher = model(0), Teacher(model(1))
    ids = torch.arange(3, 23)[None] * 7 % 256
    inputs = {"position_ids": torch.arange(20)[None], "attention_mask": torch.ones_like(ids)}
    theirs = teacher.states({"input_ids": ids, **inputs})
    loss_model = LossModel(student)
    plain = loss_model(ids, next_tokens(ids), 8.0, **inputs)
    held = loss_model(ids, next_tokens(ids), 8.0, restored=Restored(theirs, ids > 0, 3.0), **inputs)
    ours = student(input_ids=ids, output_hidden_states=True, **inputs).hidden_states[1:]
    ratios = [((one - two) ** 2).sum(-1) / (two**2).sum(-1) for one, two in zip(ours, theirs, strict=True)]
    apart = torch.stack(ratios).mean(0).sum()
    assert float(apart.detach()) > 10
    assert float((held.loss - plain.loss).detach()) == pytest.approx(float(3 * apart.detach() / 8), rel=1e-5)
    assert torch.equal(held.losses, plain.losses)


def test_other_layers_widths_and_none_are_refused() -> None:
    teacher = Teacher(model())
    teacher.check(model(3))
    for other, words in (
        (model(num_hidden_layers=3), "source has 2 layers of width 32 and the model 3 layers of width 32"),
        (model(hidden_size=64), "2 layers of width 64"),
    ):
        with pytest.raises(UnsupportedError, match=words) as refused:
            teacher.check(other)
        assert "--source" in refused.value.remedy
        assert "objective.restoration=0" in refused.value.remedy
    theirs = states(1)
    for ours in (states(0)[:2], [one[..., :3] for one in states(0)]):
        with pytest.raises(UnsupportedError, match="not those of its source"):
            distance(ours, Restored(theirs, marked(7, 7), 1.0))
    silent = model()(input_ids=torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="the model gives no hidden states") as refused:
        after_layers(silent, "the model")
    assert "objective.restoration=0" in refused.value.remedy


def test_the_sources_bytes() -> None:
    teacher = Teacher(model())
    assert teacher.bytes == sum(one.nbytes for one in model().parameters()) + 2 * 4 * 8  # two tables of 8 frequencies
    assert teacher.state_bytes(100) == 100 * 2 * 32 * 4
    assert not any(one.requires_grad for one in teacher.model.parameters())
    assert not teacher.model.training
