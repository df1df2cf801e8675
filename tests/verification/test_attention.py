"""Which attention a measurement runs on, and that it computes what stock attention computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ctxforge
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError
from ctxforge.sources import bundled_model, bundled_text
from ctxforge.verification import VerifySettings, evaluate_model, expanded_heads
from ctxforge.verification.attention import attention_for
from ctxforge.verification.cache_check import beyond_rounding, cache_difference
from ctxforge.verification.load import load_model, load_tokenizer, pick_dtype
from ctxforge.verification.onepass import OnePass
from tests.verification.tiny import DYNAMIC, byte_tokenizer, prose, tiny, token_ids


def test_expanded_heads_equal_sdpa() -> None:
    model = tiny()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    ids = token_ids(200)
    stock = OnePass(model).losses(ids)
    with expanded_heads.expanded_heads(model) as name:
        assert model.config._attn_implementation == name
        torch.testing.assert_close(OnePass(model).losses(ids), stock, atol=1e-5, rtol=0)
        # Chunks with a cache: explicit masks, and single tokens without one.
        found = cache_difference(model, token_ids(192), 64, 256)
        assert found is not None
        assert found.largest == pytest.approx(0, abs=1e-3)
        assert found.rounding == 0
    assert model.config._attn_implementation == "sdpa"


def test_expanded_heads_put_the_attention_back_after_an_error() -> None:
    model = tiny()
    with pytest.raises(RuntimeError), expanded_heads.expanded_heads(model):
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(UnsupportedError):
        expanded_heads.attend(torch.nn.Identity(), one, one, one, None, softcap=30.0)


def test_rounding_is_no_broken_cache() -> None:
    settings = VerifySettings(dtype="bfloat16")
    ids = load_tokenizer(bundled_model(), settings)(bundled_text()[:2000])["input_ids"]
    good = cache_difference(load_model(bundled_model(), settings, "cpu"), ids, 512, 2048)
    broken = cache_difference(tiny(rope_parameters=DYNAMIC).to(torch.bfloat16), token_ids(192), 64, 256)
    assert good is not None
    assert broken is not None
    assert good.rounding > 0
    assert beyond_rounding(good.largest, good.rounding) <= 5e-2 < beyond_rounding(broken.largest, broken.rounding)


@pytest.mark.parametrize("system", ["streaming-llm", "infllm"])
def test_the_cache_of_an_attention_system(system: str, tmp_path: Path) -> None:
    """One computes the rows of a batch one by one, so batches show no rounding; one must see every position from 0."""
    folder = ctxforge.extend(bundled_model(), attach=system, to="2x", out=tmp_path / "out").out
    settings = VerifySettings(dtype="bfloat16", trust_remote_code=True)
    ids = load_tokenizer(folder, settings)(bundled_text()[:4000])["input_ids"]
    model = load_model(folder, settings, "cpu")
    narrow = cache_difference(model, ids, 512, 1024)
    assert narrow is not None
    assert 0 < narrow.rounding < 1
    assert beyond_rounding(narrow.largest, narrow.rounding) <= 5e-2
    exact = cache_difference(model.float(), ids, 512, 1024)
    assert exact is not None
    assert exact.largest < 1e-3


def test_the_dtype_of_a_checkpoint_with_code_of_its_own(tmp_path: Path) -> None:
    folder = ctxforge.extend(bundled_model(), attach="lm-infinite", to="2x", out=tmp_path / "out").out
    stored = json.loads((folder / "config.json").read_text())
    wanted = "bfloat16" if stored.get("dtype", stored.get("torch_dtype")) == "bfloat16" else "float32"
    assert pick_dtype("auto", folder, "cpu", 100) == "float32"
    assert pick_dtype("auto", folder, "cpu", 100_000) in {"float32", wanted}
    with pytest.raises(CheckpointError):
        pick_dtype("auto", tmp_path, "cpu", 100)
    with pytest.raises(CheckpointError, match="modeling code of its own") as error:
        load_model(folder, VerifySettings(dtype="float32"), "cpu")
    assert "--trust-remote-code" in error.value.remedy


def test_blocks_on_a_cpu_serve_the_long_passes_only() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=512,
        initializer_range=0.4,
    )
    model = MistralForCausalLM(config).eval()
    settings = VerifySettings(device="cpu", needles=2, seeds=1, short_windows=2)
    common: dict[str, Any] = {"text": prose(12000), "trained_length": 1024, "target_length": 2048}
    blocks = evaluate_model(model, byte_tokenizer(), settings=settings, **common)
    stock = evaluate_model(model, byte_tokenizer(), settings=replace(settings, attention="sdpa"), **common)
    assert (blocks.attention, stock.attention) == ("ctxforge_cpu_blocks", "sdpa")
    for ours, theirs in zip(blocks.buckets, stock.buckets, strict=True):
        assert ours.nll == pytest.approx(theirs.nll, abs=1e-4)
    assert blocks.cache_difference is not None
    assert model.config._attn_implementation == "sdpa"


def test_only_float32_on_a_gpu_needs_expanding() -> None:
    assert not expanded_heads.needs_expanding(tiny())


def test_an_attention_by_name() -> None:
    model = tiny()
    with attention_for(model, "eager", 64) as name:
        assert name == model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"
    with attention_for(model, "auto", 64) as name:
        assert name == "sdpa"
    with pytest.raises(UsageError, match="flash_attention_2"), attention_for(model, "flash_attention_2", 64):
        pass
