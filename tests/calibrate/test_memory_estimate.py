"""The estimate against resident memory, against the meter on real tensors, and against arithmetic for a large model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from ctxforge.calibrate.memory.checkpointing import Checkpointing
from ctxforge.calibrate.memory.eight_bit import adamw_8bit
from ctxforge.calibrate.memory.estimate import Estimator, StepOptions, meta_model, refuse_too_large
from ctxforge.calibrate.memory.meter import MemoryMeter
from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs
from ctxforge.calibrate.memory.ways import ways_to_fit
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens
from ctxforge.errors import ResourceError, UsageError
from tests.verification.tiny import DYNAMIC, LONGROPE, YARN, tiny, token_ids

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("step_in_child.py")
GEMMA: dict[str, Any] = {"head_dim": 32, "query_pre_attn_scalar": 32}


@pytest.mark.parametrize(
    ("kind", "sizes", "adapters", "length", "chosen"),
    [
        ("llama", {}, False, 1536, {"checkpoint": False}),
        ("llama", {"vocab_size": 2048}, True, 4096, {"checkpoint": True}),
        ("gemma2", GEMMA, False, 1024, {"checkpoint": True, "tile_tokens": 256}),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak resident memory is read from /proc")
def test_within_a_quarter_of_resident_memory(
    kind: str, sizes: dict[str, Any], adapters: bool, length: int, chosen: dict[str, Any]
) -> None:
    # Freed memory goes back at once, so that what is resident is what is alive.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(CHILD), json.dumps([kind, sizes, adapters, length, chosen])],
        cwd=ROOT,
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["peak"] > 100 << 20
    assert 0.75 < found["estimate"] / found["peak"] < 1.25, found


def measured(model: Any, length: int, options: StepOptions) -> int:
    """Peak of activations of a real step, by the meter."""
    handles = [Checkpointing(model, keep_attention=options.keep_attention)] if options.checkpoint else []
    if options.tile_tokens:
        handles.append(TiledMLPs(model, options.tile_tokens))
    ids = torch.tensor([token_ids(length)] * options.batch)
    where = torch.arange(length)[None]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    loss_model = LossModel(model, options.slice_rows)
    loss_model(ids[:, :2], next_tokens(ids[:, :2]), 1.0)
    with MemoryMeter() as meter:
        loss_model(ids, next_tokens(ids), 1.0, position_ids=where).loss.backward()
    for handle in handles:
        handle.remove()
    return meter.peak


@pytest.mark.parametrize(
    "options",
    [
        StepOptions(checkpoint=False, slice_rows=16),
        StepOptions(slice_rows=16, batch=2),
        StepOptions(keep_attention=True, slice_rows=16),
        StepOptions(tile_tokens=32, slice_rows=16),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_the_rehearsal_is_the_step(kind: str, options: StepOptions) -> None:
    model = tiny(kind, num_hidden_layers=5, intermediate_size=512).requires_grad_(True)
    found = Estimator(model).estimate(256, options)
    peak = measured(model, 256, options)
    assert found.checkpoints + max(found.layer, found.loss) == pytest.approx(peak, rel=0.1)
    # The model is left as it was.
    assert not model.get_input_embeddings().weight.is_meta
    assert len(model.get_decoder().layers) == 5


@pytest.mark.parametrize("rope", [YARN, LONGROPE, DYNAMIC])
def test_rotations_that_ask_for_the_length(rope: dict[str, Any]) -> None:
    """And a model that is wrapped and hooked already."""
    options = StepOptions(slice_rows=16, tile_tokens=64)
    plain = Estimator(tiny().requires_grad_(True)).estimate(256, options)
    model = tiny(rope_parameters=rope).requires_grad_(True)
    with Checkpointing(model), TiledMLPs(model, 64):
        found = Estimator(model).estimate(256, options)
    assert found.layer == pytest.approx(plain.layer, rel=0.02)
    assert found.checkpoints == plain.checkpoints


def test_kinds_of_layers_are_told_apart() -> None:
    model = tiny("llama", num_hidden_layers=4).requires_grad_(True)
    for layer in model.model.layers[2:]:
        layer.mlp.up_proj, layer.mlp.gate_proj = (torch.nn.Linear(64, 1024) for _ in range(2))
        layer.mlp.down_proj = torch.nn.Linear(1024, 64)
    estimator = Estimator(model)
    assert [(kind.index, kind.count) for kind in estimator.kinds] == [(0, 2), (2, 2)]
    options = StepOptions(checkpoint=False, slice_rows=16)
    found = estimator.estimate(256, options)
    assert found.checkpoints + max(found.layer, found.loss) == pytest.approx(measured(model, 256, options), rel=0.1)


LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.fixture(scope="module")
def large() -> Estimator:
    model = meta_model(CONFIG_MAPPING["llama"](**LLAMA_8B))
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.input_layernorm.weight.requires_grad_(True)
    return Estimator(model)


def test_a_large_model_by_arithmetic(large: Estimator) -> None:
    length = 65536
    found = large.estimate(length, StepOptions(gpu=True))
    parameters = 8_030_261_248
    assert abs(found.weights - 2 * parameters) < 1 << 20
    assert found.gradients == 32 * 4096 * 2
    assert found.optimiser == 2 * found.gradients
    hidden = length * 4096 * 2
    assert found.checkpoints == 32 * hidden
    wide = length * 14336 * 2
    # Gate, up, its activation and the product, and gradients of some of them; between them and three times as many.
    assert 4 * wide < found.layer < 4 * wide + 3 * wide + 20 * hidden
    tiled = large.estimate(length, StepOptions(gpu=True, tile_tokens=4096))
    assert found.layer - tiled.layer > 3 * wide
    moved = large.estimate(length, StepOptions(gpu=True, offload=True))
    assert (moved.checkpoints, moved.host) == (2 * hidden, 30 * hidden)
    kept = large.estimate(length, StepOptions(gpu=True, keep_attention=True))
    assert kept.checkpoints == 32 * (2 * hidden + length * 32 * 4)
    assert large.estimate(length, StepOptions(gpu=True, dense_mask=True)).mask == length**2


def test_logits_never_count(large: Estimator) -> None:
    found = large.estimate(65536, StepOptions(gpu=True))
    assert found.loss < 65536 * 128256 * 2 / 4


def test_the_longest_that_fits(large: Estimator) -> None:
    options, memory = StepOptions(gpu=True), 80 * 10**9
    longest = large.longest(memory, options, multiple=4096)
    assert large.estimate(longest, options).total <= memory
    assert large.estimate(longest + 8192, options).total > memory
    assert large.longest(10 * 10**9, options) == 0


def test_states_and_shards() -> None:
    model = tiny().requires_grad_(True)
    estimator = Estimator(model)
    count = sum(p.numel() for p in model.parameters())
    plain = estimator.estimate(64, StepOptions())
    assert (plain.gradients, plain.optimiser) == (4 * count, 8 * count)
    small = sum(p.numel() for p in model.parameters() if p.numel() < 4096)
    eight = estimator.estimate(64, StepOptions(optimiser="adamw-8bit"))
    assert eight.optimiser == int(8 * small + (count - small) * (2 + 8 / 256))
    split = estimator.estimate(64, StepOptions(shards=4))
    assert split.optimiser == plain.optimiser // 4
    assert split.weights > plain.weights // 4
    half = estimator.estimate(64, StepOptions(dtype="bfloat16"))
    assert half.gradients == plain.gradients // 2
    assert half.layer < plain.layer


def test_what_would_fit() -> None:
    model = tiny(num_hidden_layers=6, intermediate_size=1024).requires_grad_(True)
    estimator, options = Estimator(model), StepOptions(checkpoint=False, batch=2, slice_rows=64)
    asked = estimator.estimate(512, options)
    tiled = estimator.estimate(512, replace(options, batch=1, checkpoint=True, tile_tokens=256))
    ways = ways_to_fit(estimator, 512, options, tiled.total)
    assert [way.what.split(" ")[0] for way in ways] == ["give", "checkpoint", "tile"]
    assert [way.fits for way in ways] == [False, False, True]
    totals = [asked.total, *(way.estimate.total for way in ways)]
    assert totals == sorted(totals, reverse=True)
    with pytest.raises(ResourceError) as caught:
        refuse_too_large(asked, tiled.total, lambda: [way.line for way in ways if way.fits])
    assert "tile the MLPs over 256 tokens" in caught.value.remedy
    refuse_too_large(asked, asked.total, lambda: [])
    adapted = ways_to_fit(estimator, 512, options, tiled.fixed // 2)
    assert any("adapters of rank 16" in way.what for way in adapted)
    assert ways_to_fit(estimator, 512, options, 1000)[-1].fits is False


def test_bad_options() -> None:
    with pytest.raises(UsageError):
        StepOptions(dtype="int3")
    with pytest.raises(UsageError):
        StepOptions(batch=0)
    with pytest.raises(UsageError):
        Estimator(tiny()).estimate(0, StepOptions())


def test_the_eight_bit_optimiser_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError) as caught:
        adamw_8bit([torch.zeros(2, requires_grad=True)], lr=1e-3)
    assert "bitsandbytes" in caught.value.cause
    assert "eight-bit" in caught.value.remedy


@pytest.mark.gpu
def test_the_eight_bit_optimiser_steps() -> None:
    pytest.importorskip("bitsandbytes")
    weight = torch.ones(128, 128, device="cuda", requires_grad=True)
    optimiser = adamw_8bit([weight], lr=1e-2)
    weight.square().sum().backward()
    optimiser.step()
    assert float(weight.detach().mean()) == pytest.approx(0.99, abs=1e-3)
