"""What is trained, in which dtype, from which gradients; and its state on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxforge.calibrate.adapters import attach, merge, named_recipe, read_adapter, restore_adapter, save_adapter
from ctxforge.calibrate.adapters.files import RECORD, WEIGHTS
from ctxforge.checkpoint import read_checkpoint
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError
from tests.architectures.tiny import build, model_class
from tests.calibrate.adapter_models import LORA, PLUS, load, logits, save_tiny, shake, trained_model
from tests.calibrate.test_merge_checkpoint import stored


def step(model: Any, trained: Any, rate: float = 1e-3) -> float:
    """One optimiser step on fixed tokens; gives the loss before it."""
    ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(4))
    optimiser = torch.optim.AdamW([one for _, one in trained.tensors()], lr=rate, weight_decay=0.0)
    loss = model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids), use_cache=False).loss
    loss.backward()
    optimiser.step()
    return float(loss.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_masters_are_float32_and_the_base_keeps_its_dtype(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_tiny(kind, tmp_path / "base", dtype=dtype)
    model = load(base, dtype)
    before = logits(model, 24)
    frozen = {name: one.detach().clone() for name, one in model.named_parameters()}
    trained = attach(model, read_checkpoint(base), PLUS)
    assert torch.equal(logits(model, 24), before)  # B is 0, and the masters round to what was there
    assert {one.dtype for _, one in trained.tensors()} == {torch.float32}
    wanted = {id(one) for _, one in trained.tensors()}
    assert {id(one) for one in model.parameters() if one.requires_grad} == wanted
    step(model, trained)
    assert all(one.grad is not None and one.grad.dtype == torch.float32 for _, one in trained.tensors())
    assert all(bool(one.grad.any()) for name, one in trained.tensors() if not name.endswith("lora_A"))
    assert not torch.equal(logits(model, 24), before)
    touched = {entry.parameter for entry in trained.entries if entry.kind == "whole"}
    for name, one in model.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in frozen and plain not in touched:
            assert one.dtype == dtype
            assert torch.equal(one, frozen[plain])


def test_a_step_too_small_for_bfloat16_is_not_lost(tmp_path: Path) -> None:
    """The reason for masters: steps of 1e-4 on norms near 1 are below bfloat16's half ulp of 2^-8."""
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    model = load(base, torch.bfloat16)
    trained = attach(model, read_checkpoint(base), named_recipe("lora", rank=2, whole=("norm",)))
    master = next(one.parameter for one in trained.whole if one.entry.parameter == "model.norm.weight")
    before = master.detach().clone()
    for _ in range(3):
        step(model, trained, rate=1e-4)
    moved = (master.detach() - before).abs()
    assert moved.max() > 1e-4
    assert (before.bfloat16() + (master.detach() - before).bfloat16() / 3).equal(before.bfloat16())
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.norm.weight, master.bfloat16())


def test_a_tied_tensor_is_one_parameter_with_both_gradients(tmp_path: Path) -> None:
    base = save_tiny("qwen2", tmp_path / "base", dtype=torch.bfloat16)
    model = load(base, torch.bfloat16)
    trained = attach(model, read_checkpoint(base), PLUS)
    whole = [one for one in trained.whole if one.entry.role == "embedding"]
    assert len(whole) == 1
    step(model, trained, rate=0.05)
    gradient = whole[0].parameter.grad
    assert gradient is not None
    ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(4)).unique()
    absent = torch.ones(96, dtype=torch.bool)
    absent[ids] = False
    assert gradient[absent].any(), "the head reaches tokens that aren't in the input"
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_groups_count_every_parameter_once(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    trained = attach(load(base), read_checkpoint(base), named_recipe("lora", whole=("norm", "embedding", "head")))
    groups = trained.groups()
    assert set(groups) == {"low_rank", "norm", "embedding", "head"}
    assert sum(one.numel() for some in groups.values() for one in some) == trained.count
    assert trained.count == 3 * 32 * (4 * 64 + 64 + 64 + 32 + 32) + 7 * 64 + 2 * 96 * 64


def test_initial_values_depend_on_the_seed_alone(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    checkpoint = read_checkpoint(base)
    found = []
    for noise, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(noise)
        trained = attach(load(base), checkpoint, LORA, seed=seed)
        after = torch.rand(1)
        torch.manual_seed(noise)
        load(base)
        found.append(trained.low_rank[0].inner.detach().clone())
        del after
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_state_goes_to_disk_and_back_bit_for_bit(tmp_path: Path) -> None:
    base = save_tiny("qwen2", tmp_path / "base")
    model, trained, checkpoint = trained_model(base, PLUS)
    wanted = logits(model, 24)
    folder = save_adapter(tmp_path / "adapter", trained, {"step": 7})
    shake(trained, seed=9)
    save_adapter(folder, trained, {"step": 8})  # replaces the old state
    assert restore_adapter(folder, trained).notes == {"step": 8}
    again = load(base)
    other = attach(again, checkpoint, PLUS, seed=3)
    shake(trained, seed=9, size=-0.05)
    restore_adapter(folder, other)
    assert not torch.equal(logits(again, 24), wanted)
    save_adapter(tmp_path / "second", other, {"step": 8})
    first, second = (load_file(path / WEIGHTS) for path in (folder, tmp_path / "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "second"]


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    _, trained, checkpoint = trained_model(base, LORA)
    folder = save_adapter(tmp_path / "adapter", trained)
    with pytest.raises(UsageError, match="another recipe"):
        restore_adapter(folder, attach(load(base), checkpoint, named_recipe("lora", rank=2)))
    other = save_tiny("llama", tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="trained on other weights"):
        restore_adapter(folder, attach(load(other), read_checkpoint(other), LORA))
    with pytest.raises(UsageError, match="is not an adapter"):
        save_adapter(base, trained)
    with torch.no_grad():
        trained.low_rank[0].inner[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match="NaN or an infinity"):
        save_adapter(folder, trained)
    read_adapter(folder)


@pytest.mark.parametrize("how", ["json", "missing", "dtype", "shape", "extra", "twice", "truncated"])
def test_a_damaged_adapter_is_refused(how: str, tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    _, trained, _ = trained_model(base, LORA)
    folder = save_adapter(tmp_path / "adapter", trained)
    numbers, record = load_file(folder / WEIGHTS), json.loads((folder / RECORD).read_text())
    name = next(iter(numbers))
    if how == "missing":
        del numbers[name]
    elif how == "dtype":
        numbers[name] = numbers[name].half()
    elif how == "shape":
        numbers[name] = numbers[name].T.contiguous()
    elif how == "extra":
        numbers["more"] = torch.zeros(1)
    elif how == "twice":
        record["entries"].append(record["entries"][0])
    elif how == "json":
        del record["entries"][0]["shape"]
    save_file(numbers, folder / WEIGHTS)
    (folder / RECORD).write_text(json.dumps(record))
    if how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(CheckpointError):
        merge(base, folder, tmp_path / "out")


def test_a_model_that_is_not_the_checkpoint_is_refused(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    checkpoint = read_checkpoint(base)
    with pytest.raises(CheckpointError, match="does not hold what the checkpoint stores"):
        attach(load(base, torch.bfloat16), checkpoint, LORA)
    model = load(base)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj"):
        attach(model, checkpoint, LORA)
    model, _, _ = trained_model(base, LORA)
    with pytest.raises(UsageError, match="has an adapter already"):
        attach(model, checkpoint, LORA)


def test_experts_are_refused_with_the_reason(tmp_path: Path) -> None:
    base = save_tiny("mixtral", tmp_path / "base")
    checkpoint = read_checkpoint(base)
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        attach(load(base), checkpoint, named_recipe("lora", low_rank=("attention", "mlp")))
    with pytest.raises(UnsupportedError, match="that transformers rearranges"):
        attach(load(base), checkpoint, named_recipe("full"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("sarvam_moe", "that transformers rearranges .*query_key_value"), ("zamba2", "share one weight")],
)
def test_weights_that_a_change_cannot_reach_are_refused(kind: str, words: str, tmp_path: Path) -> None:
    """A fused projection that transformers takes apart on loading, and one block that serves several layers."""
    build(kind).save_pretrained(tmp_path / "base")
    model = model_class(kind).from_pretrained(tmp_path / "base", dtype=torch.float32)
    with pytest.raises(UnsupportedError, match=words):
        attach(model, read_checkpoint(tmp_path / "base"), LORA)


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "opt", "bloom", "afmoe", "deepseek_v3", "qwen3_next", "llama4"])
def test_awkward_architectures_end_to_end(kind: str, tmp_path: Path) -> None:
    """Transposed and fused projections, learned positions, renamed tensors, gates, MLA, hybrids, image towers."""
    build(kind).save_pretrained(tmp_path / "base")

    def opened(folder: Path) -> Any:
        return model_class(kind).from_pretrained(folder, dtype=torch.float32).eval()

    whole: Any = ("norm", "embedding", "positions") if kind in ("gpt2", "opt") else ("norm", "embedding")
    model = opened(tmp_path / "base")
    plain = logits(model, 20)
    trained = attach(model, read_checkpoint(tmp_path / "base"), named_recipe("lora", rank=3, whole=whole))
    shake(trained, size=0.03)
    wanted = logits(model, 20)
    merge(tmp_path / "base", save_adapter(tmp_path / "adapter", trained), tmp_path / "out")
    got = logits(opened(tmp_path / "out"), 20)
    assert (wanted - plain).abs().max() > 0.05
    assert (got - wanted).abs().max() <= 2e-4
    old, new = stored(tmp_path / "base"), stored(tmp_path / "out")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {tensor for entry in trained.entries for tensor in entry.tensors}
