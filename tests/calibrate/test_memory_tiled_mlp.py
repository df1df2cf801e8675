"""Tiled MLPs against whole ones, over architectures; what may not be tiled; how often an MLP runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctxforge.calibrate.memory.checkpointing import Checkpointing
from ctxforge.calibrate.memory.meter import MemoryMeter
from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs, default_tile, position_wise_mlps
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens
from ctxforge.errors import UnsupportedError, UsageError
from tests.verification.tiny import tiny, token_ids

IDS = torch.tensor([token_ids(24, seed=1), token_ids(24, seed=2)])
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gpt_neox": {},
    "cohere": {},
    "starcoder2": {"residual_dropout": 0.0},
}


def gradients(model: Any) -> list[torch.Tensor]:
    loss = LossModel(model)(IDS, next_tokens(IDS), 46.0).loss
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor], relative: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=relative, atol=relative * float(other.abs().max()))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_whole_mlps(kind: str, checkpoint: bool) -> None:
    model = tiny(kind, **KINDS[kind]).requires_grad_(True)
    expected = gradients(model)
    with TiledMLPs(model, tile_tokens=7) as tiled:
        assert tiled.count == 2
        if checkpoint:
            with Checkpointing(model):
                assert_close(gradients(model), expected)
        else:
            assert_close(gradients(model), expected)
    assert all("forward" not in part.__dict__ for part in model.modules())


def test_frozen_weights_get_no_gradient() -> None:
    model = tiny()
    model.get_input_embeddings().weight.requires_grad_(True)
    expected = gradients(model)
    with TiledMLPs(model, tile_tokens=5):
        assert_close(gradients(model), expected)


def test_mixtures_are_left_alone() -> None:
    model = tiny("mixtral", num_local_experts=2, num_experts_per_tok=1)
    assert position_wise_mlps(model) == []
    with pytest.raises(UnsupportedError) as caught:
        TiledMLPs(model, 8)
    assert "mixtures of experts" in caught.value.cause


class Mixing(torch.nn.Module):
    """Looks like an MLP and is called one, but a token sees the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(width, 2 * width)
        self.down_proj = torch.nn.Linear(2 * width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(self.up_proj(states + states.roll(1, dims=1)).relu())
        return found


def test_a_module_that_mixes_tokens_is_left_alone() -> None:
    model = tiny()
    model.model.layers[0].mlp = Mixing(64)
    assert position_wise_mlps(model) == [model.model.layers[1].mlp]
    # Negative control: tiled nevertheless, it computes something else.
    model.requires_grad_(True)
    expected = gradients(model)[0]
    with TiledMLPs(model, 7, [model.model.layers[0].mlp]):
        assert abs(float(gradients(model)[0]) - float(expected)) > 1e-4


@pytest.mark.parametrize(("kind", "runs"), [("llama", 2), ("gemma2", 3)])
def test_a_checkpointed_mlp_runs_again_only_where_something_after_it_is_kept(kind: str, runs: int) -> None:
    """Forward and backward; Gemma 2's norm after the MLP keeps its output, so the second run of the layer needs it."""
    model = tiny(kind, **KINDS[kind]).requires_grad_(True)
    rows = 0

    def count(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal rows
        rows += output.shape[1]

    with TiledMLPs(model, 7), Checkpointing(model), model.model.layers[0].mlp.up_proj.register_forward_hook(count):
        gradients(model)
    assert rows == runs * IDS.shape[1]


def test_the_widest_tensors_are_gone() -> None:
    model = tiny(intermediate_size=4096, num_hidden_layers=2, hidden_size=64).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    peaks = []
    for tile in (None, 4):
        handle = TiledMLPs(model, tile) if tile else None
        with Checkpointing(model), MemoryMeter() as meter:
            gradients(model)
        peaks.append(meter.peak)
        if handle:
            handle.remove()
    assert peaks[1] < 0.35 * peaks[0]


class Dropping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(64, 64)
        self.down_proj = torch.nn.Linear(64, 64)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.dropout(self.down_proj(self.up_proj(states)))
        return found


def test_dropout_is_the_same_in_the_backward() -> None:
    model = tiny()
    part = model.model.layers[0].mlp = Dropping()
    with TiledMLPs(model, 7):
        part.train()
        states = torch.randn(1, 24, 64)
        torch.manual_seed(3)
        output = part(states)
        # The gradient of the bias after dropout counts, twice over, the outputs that were kept.
        (bias,) = torch.autograd.grad(output.sum(), [part.down_proj.bias])
        torch.testing.assert_close(bias, 2.0 * (output != 0).sum((0, 1)).float())
        after = torch.rand(1)
        torch.manual_seed(3)
        part(states)
        torch.testing.assert_close(torch.rand(1), after)


def test_bfloat16_gradients_of_many_tiles_are_rounded_once() -> None:
    model = tiny(dtype=torch.bfloat16).requires_grad_(True)
    exact = tiny(dtype=torch.float32).requires_grad_(True)
    exact.load_state_dict(model.state_dict())
    name = "model.layers.1.mlp.down_proj.weight"

    def error(tile: int | None) -> float:
        handle = TiledMLPs(model, tile) if tile else None
        loss = LossModel(model)(IDS, next_tokens(IDS), 46.0).loss
        (ours,) = torch.autograd.grad(loss, [model.get_parameter(name)])
        if handle:
            handle.remove()
        (theirs,) = torch.autograd.grad(LossModel(exact)(IDS, next_tokens(IDS), 46.0).loss, [exact.get_parameter(name)])
        return float((ours.float() - theirs).norm() / theirs.norm())

    assert error(1) < 1.2 * error(None)


def test_bad_tile() -> None:
    with pytest.raises(UsageError):
        TiledMLPs(tiny(), 0)


def test_default_tile() -> None:
    assert [default_tile(width) for width in (64, 4096)] == [256, 4096]
