"""Checkpointed layers against plain ones: the same bits, dropout and caches included."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaModel, StaticCache

from ctxforge.calibrate.memory import trimming
from ctxforge.calibrate.memory.checkpointing import Checkpointing, _keep_attention
from ctxforge.calibrate.memory.meter import MemoryMeter
from ctxforge.calibrate.memory.offload import Offload, PinnedMover
from ctxforge.calibrate.memory.trimming import HeapTrimmer
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens
from ctxforge.errors import UnsupportedError, UsageError
from tests.verification.tiny import tiny, token_ids

IDS = torch.tensor([token_ids(24, seed=1)])
LAYERS = 4
# transformers renamed it.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


def model_of(kind: str = "llama", **changes: Any) -> Any:
    return tiny(kind, num_hidden_layers=LAYERS, **changes).requires_grad_(True).train()


def checkpoint_itself(model: Any) -> None:
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


def gradients(model: Any, **inputs: Any) -> list[torch.Tensor]:
    torch.manual_seed(7)
    where = torch.arange(IDS.shape[1])[None]
    found = LossModel(model)(IDS, next_tokens(IDS), 20.0, position_ids=where, **inputs)
    return [found.loss.detach(), *torch.autograd.grad(found.loss, list(model.parameters()))]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("keep_attention", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16}),
        ("gpt_neox", {"hidden_dropout": 0.3, "attention_dropout": 0.2}),
    ],
)
def test_the_same_bits(kind: str, changes: dict[str, Any], keep_attention: bool) -> None:
    model = model_of(kind, **changes)
    expected = gradients(model)
    if changes.get("hidden_dropout"):
        torch.manual_seed(8)
        assert float(expected[0]) != float(LossModel(model)(IDS, next_tokens(IDS), 20.0).loss.detach())
    with Checkpointing(model, keep_attention=keep_attention):
        assert_same(gradients(model), expected)
    assert all("forward" not in layer.__dict__ for layer in model.get_decoder().layers)


def test_each_layer_keeps_its_input_alone() -> None:
    model = model_of()
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    where = torch.arange(IDS.shape[1])[None]
    with Checkpointing(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(inputs_embeds=embedded, position_ids=where, use_cache=False)
    hidden = IDS.shape[1] * 64
    assert kept[:LAYERS] == [hidden] * LAYERS
    # What is left is the final norm's.
    assert sum(kept) <= (LAYERS + 4) * hidden


def test_a_step_takes_less() -> None:
    peaks = []
    model = model_of().requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    ids = torch.tensor([token_ids(200, seed=1)])
    for wanted in (False, True):
        handle = Checkpointing(model) if wanted else None
        with MemoryMeter() as meter:
            LossModel(model, slice_rows=20)(ids, next_tokens(ids), 20.0).loss.backward()
        peaks.append(meter.peak)
        if handle:
            handle.remove()
    assert peaks[1] < 0.6 * peaks[0]


def two_segments(model: Any) -> list[torch.Tensor]:
    """The second half's loss, with the first half in a cache that carries gradients."""
    cache, half = DynamicCache(), IDS.shape[1] // 2
    decoder, where = model.get_decoder(), torch.arange(IDS.shape[1])[None]
    for part in (slice(0, half), slice(half, None)):
        hidden = decoder(
            input_ids=IDS[:, part], position_ids=where[:, part], use_cache=True, **{CACHE: cache}
        ).last_hidden_state
    assert cache.get_seq_length() == IDS.shape[1]
    loss = hidden.square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(decoder.parameters()))]


def test_caches_stay_and_carry_gradients() -> None:
    model = model_of()
    expected = two_segments(model)
    with Checkpointing(model):
        assert_same(two_segments(model), expected)
    # Negative control: transformers' own checkpointing takes the cache away.
    checkpoint_itself(model)
    with pytest.raises(AssertionError):
        two_segments(model)


def test_a_cache_written_in_place_is_refused() -> None:
    model = model_of()
    cache = StaticCache(config=model.config, max_cache_len=32)
    with Checkpointing(model), pytest.raises(UnsupportedError) as caught:
        model.get_decoder()(input_ids=IDS, use_cache=True, **{CACHE: cache})
    assert "in place" in caught.value.cause


def test_a_model_that_checkpoints_itself_is_refused() -> None:
    model = model_of()
    checkpoint_itself(model)
    with pytest.raises(UsageError) as caught:
        Checkpointing(model)
    assert "already" in caught.value.cause


class CountAttention(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forwards += "flash_attention" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("keep_attention", "again"), [(False, LAYERS), (True, 0)])
def test_attention_is_kept_or_computed_again(keep_attention: bool, again: int) -> None:
    model = model_of()
    loss_model = LossModel(model)
    with Checkpointing(model, keep_attention=keep_attention):
        loss = loss_model(IDS, next_tokens(IDS), 20.0).loss
        with CountAttention() as count:
            loss.backward()
    assert count.forwards == again


def test_attention_that_draws_is_computed_again() -> None:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    one = torch.zeros(1, 1, 2, 4)
    policies = {p: _keep_attention(None, kernel, one, one, one, p).name for p in (0.0, 0.1)}
    assert policies == {0.0: "MUST_SAVE", 0.1: "PREFER_RECOMPUTE"}
    assert _keep_attention(None, torch.ops.aten.mm.default, one, one).name == "PREFER_RECOMPUTE"


class CopyMover:
    """Copies that take part in everything but streams."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.numbers: dict[int, int] = {}

    def serves(self, tensor: torch.Tensor) -> bool:
        return tensor.dim() == 3

    def away(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        copied = tensor.clone()
        self.numbers[id(copied)] = len(self.numbers)
        return copied, None

    def back(self, copied: torch.Tensor, _written: Any, _device: torch.device) -> tuple[torch.Tensor, Any]:
        number = self.numbers[id(copied)]
        self.log.append(f"fetch {number}")
        return copied.clone(), number

    def ready(self, _tensor: torch.Tensor, fetched: Any) -> None:
        self.log.append(f"use {fetched}")


def test_moved_inputs_come_back_one_ahead() -> None:
    model = model_of()
    expected = gradients(model)
    offload = Offload(CopyMover())
    with Checkpointing(model, offload=offload):
        assert_same(gradients(model), expected)
        assert offload.moved == LAYERS
        assert_same(gradients(model), expected)
    once = ["fetch 3", "use 3", "fetch 2", "use 2", "fetch 1", "use 1", "fetch 0", "use 0"]
    assert offload.mover.log[:8] == once
    assert len(offload.mover.log) == 16


def test_nothing_moves_on_a_cpu() -> None:
    model = model_of()
    expected = gradients(model)
    offload = Offload(PinnedMover(minimum_bytes=0))
    with Checkpointing(model, offload=offload):
        assert_same(gradients(model), expected)
    assert offload.moved == 0


@pytest.mark.gpu
def test_inputs_move_to_pinned_memory() -> None:
    model = model_of().cuda()
    ids = IDS.cuda()

    def step() -> list[torch.Tensor]:
        loss = LossModel(model)(ids, next_tokens(ids), 20.0).loss
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    with Checkpointing(model):
        expected = step()
    offload = Offload(PinnedMover(minimum_bytes=0))
    with Checkpointing(model, offload=offload):
        ours = step()
    assert offload.moved == LAYERS
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_an_input_that_was_moved_is_held_nowhere_else() -> None:
    """The layers' own tensors are gone after the forward, or moving them would save nothing."""
    model = model_of()
    seen: list[weakref.ref[torch.Tensor]] = []

    def note(_layer: Any, args: Any, kwargs: Any) -> None:
        seen.append(weakref.ref(args[0] if args else kwargs["hidden_states"]))

    for layer in model.get_decoder().layers:
        layer.register_forward_pre_hook(note, with_kwargs=True)
    for offload, held in ((Offload(CopyMover()), 0), (None, LAYERS)):
        seen.clear()
        with Checkpointing(model, offload=offload):
            found = LossModel(model)(IDS, next_tokens(IDS), 20.0)
            gc.collect()
            # Not moved, a tensor may be kept as itself or as another view of its memory.
            alive = sum(one() is not None for one in seen)
            assert alive <= held
            found.loss.backward()


def test_the_heap_is_trimmed_when_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([900, 500, 580, 601, 450, 500, 551, 300])
    monkeypatch.setattr(trimming, "_resident", lambda: next(sizes))
    given: list[int] = []
    trimmer = HeapTrimmer(limit=100)
    monkeypatch.setattr(trimmer, "_trim", given.append)
    done = []
    for _ in range(6):
        trimmer.check()
        done.append(trimmer.trims)
    # 601 is 101 above the lowest, 500; then 450 was left, and 551 is 101 above that.
    assert done == [0, 0, 0, 1, 1, 2]
    assert given == [0, 0]


@pytest.mark.skipif(trimming._malloc_trim() is None, reason="glibc only")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Many small pieces below one that stays: nothing is given back before the trim."""
    code = (
        "from ctxforge.calibrate.memory.trimming import HeapTrimmer, _resident\n"
        "held = [bytearray(60_000) for _ in range(2_000)]\n"
        "trimmer = HeapTrimmer(limit=1 << 20)\n"
        "low = _resident()\n"
        "trimmer._lowest = low - (2 << 20)\n"
        "held[:-1] = []\n"
        "before = _resident()\n"
        "trimmer.check()\n"
        "print(trimmer.trims, before - _resident())"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    trims, freed = map(int, done.stdout.split())
    assert trims == 1
    assert freed > 60 << 20
