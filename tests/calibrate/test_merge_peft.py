"""peft's merge as the negative control: it rounds twice, and unties tied embeddings; ours doesn't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from ctxforge.calibrate.adapters import merge, named_recipe, save_adapter
from tests.calibrate.adapter_models import load, logits, save_tiny, trained_model

# peft 0.21 reads an attribute that transformers 5.24 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

RECIPE = named_recipe("lora", rank=4, alpha=6.0)


def ulps(got: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Differences of bfloat16 numbers in units in the last place."""
    exponent = (torch.frexp(got.double()).exponent - 1).clamp_min(-126)
    return (got.double() - exact).abs() / (2.0**-7 * torch.exp2(exponent.double()))


def peft_model(base: Path, trained: Any, dtype: torch.dtype, **options: Any) -> Any:
    """The base in bfloat16 with the same A and B in peft's own model, the adapter in `dtype`."""
    targets = [entry.parameter.removesuffix(".weight") for entry in trained.entries if entry.kind == "low-rank"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, **options)
    model = get_peft_model(load(base, torch.bfloat16), config, autocast_adapter_dtype=dtype == torch.float32)
    layers = dict(model.named_modules())
    with torch.no_grad():
        for low in trained.low_rank:
            layer = layers["base_model.model." + low.entry.parameter.removesuffix(".weight")]
            layer.lora_A.default.weight.copy_(low.inner)
            layer.lora_B.default.weight.copy_(low.outer)
            assert layer.lora_A.default.weight.dtype == dtype
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_peft_is_off_by_more_than_half_an_ulp(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    _, trained, _ = trained_model(base, RECIPE)
    with torch.no_grad():
        for _, parameter in trained.tensors():
            parameter.copy_(parameter.bfloat16())  # so that both adapters are the same numbers
    merge(base, save_adapter(tmp_path / "adapter", trained), tmp_path / "ours")
    peft_model(base, trained, dtype).merge_and_unload().save_pretrained(tmp_path / "peft")
    old, ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (base, tmp_path / "ours", tmp_path / "peft")
    )
    worst = {"ours": 0.0, "peft": 0.0}
    unlike = total = 0
    for low in trained.low_rank:
        name = low.entry.tensors[0]
        exact = old[name].double() + low.entry.scale * low.outer.detach().double() @ low.inner.detach().double()
        worst["ours"] = max(worst["ours"], float(ulps(ours[name], exact).max()))
        worst["peft"] = max(worst["peft"], float(ulps(theirs[name], exact).max()))
        unlike += int((ours[name] != theirs[name]).sum())
        total += ours[name].numel()
    assert worst["ours"] <= 0.5
    if dtype == torch.bfloat16:
        # The delta was rounded to the adapter's dtype before it was added.
        assert worst["peft"] > 0.7
        assert unlike > total / 20
    else:
        assert worst["peft"] < 0.51


def test_an_adapter_that_peft_trains_in_bfloat16_is_float32_here(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    model, trained, _ = trained_model(base, RECIPE, dtype=torch.bfloat16)
    assert {parameter.dtype for _, parameter in trained.tensors()} == {torch.float32}
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    adapter = load_file(save_adapter(tmp_path / "adapter", trained) / "adapter.safetensors")
    assert {one.dtype for one in adapter.values()} == {torch.float32}
    assert any(not torch.equal(one, one.bfloat16().float()) for one in adapter.values())


def test_a_tied_embedding_comes_apart_in_peft_and_stays_one_here(tmp_path: Path) -> None:
    """unsloth#9331, transformers#45127: modules_to_save trains a copy of embed_tokens that the tied head never sees.

    With transformers 5.24 the merged folder says that they are no longer tied and holds two matrices: nothing is lost,
    but the model has become another, larger one.
    """
    base = save_tiny("qwen2", tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = get_peft_model(load(base), config)
    saved = model.base_model.model.model.embed_tokens.modules_to_save.default.weight
    with torch.no_grad():
        saved.add_(0.05 * torch.randn(saved.shape, generator=torch.Generator().manual_seed(0)))
    model.merge_and_unload().save_pretrained(tmp_path / "peft")
    theirs = load_file(tmp_path / "peft" / "model.safetensors")
    assert not torch.equal(theirs["lm_head.weight"], theirs["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "peft" / "config.json").read_text())["tie_word_embeddings"] is False

    ours, trained, _ = trained_model(base, named_recipe("lora+", rank=4, alpha=6.0))
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    wanted = logits(ours, 32)
    merge(base, save_adapter(tmp_path / "adapter", trained), tmp_path / "ours")
    assert (logits(load(tmp_path / "ours"), 32) - wanted).abs().max() <= 1e-4
    assert "lm_head.weight" not in load_file(tmp_path / "ours" / "model.safetensors")


@pytest.mark.parametrize("rslora", [False, True])
def test_a_float32_merge_is_pefts_to_rounding(rslora: bool, tmp_path: Path) -> None:
    """The positive control: in float32 both merges compute the same function, rank-stabilised scale included."""
    base = save_tiny("llama", tmp_path / "base")
    recipe = named_recipe("lora", rank=4, alpha=6.0, rslora=rslora)
    _, trained, _ = trained_model(base, recipe)
    assert trained.entries[0].scale == pytest.approx(3.0 if rslora else 1.5)
    merge(base, save_adapter(tmp_path / "adapter", trained), tmp_path / "ours")
    theirs = tmp_path / "peft-adapter"
    targets = [entry.parameter.removesuffix(".weight") for entry in trained.entries]
    LoraConfig(r=4, lora_alpha=6, use_rslora=rslora, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(
        theirs
    )
    tensors = {
        f"base_model.model.{name.replace('.weight.lora', '.lora')}.weight": p.detach() for name, p in trained.tensors()
    }
    save_file({name: one.contiguous() for name, one in tensors.items()}, theirs / "adapter_model.safetensors")
    merged = PeftModel.from_pretrained(load(base), theirs).merge_and_unload()
    assert (logits(load(tmp_path / "ours"), 32) - logits(merged, 32)).abs().max() <= 1e-4
