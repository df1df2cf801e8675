"""Every served model type: at a scale base without bound, xPos is RoPE, so the converted model is the stock model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ctxforge.rope.custom_code import SERVED, attach
from ctxforge.rope.geometry import understand
from ctxforge.rope.types import CustomCode
from tests.modeling.emitted import chunked, difference, remote, stock, tokens, whole

LENGTH = 90
# Keys that a type does not know are kept as attributes and change nothing.
_OPTIONS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_local_experts": 2,
    "num_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "sliding_window": 24,
}
# Granite multiplies scores by 1 where others divide by 4: attention so sharp that float32 noise grows.
_FURTHER: dict[str, dict[str, Any]] = {
    model_type: {"attention_multiplier": 0.25} for model_type in ("granite", "granitemoe", "granitemoeshared")
}


def build(model_type: str, folder: Path) -> Path:
    """A tiny stock model with sharp attention and norms away from 1."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_OPTIONS, **_FURTHER.get(model_type, {})})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def carry(source: Path, target: Path, scale_base: float, **changes: Any) -> Any:
    """The model of `source` with xPos, loaded from `target`; `changes` to what the modeling file is told."""
    code = CustomCode("xpos", {"scale_base": scale_base, "block_length": None})
    config = json.loads((source / "config.json").read_text())
    changed, files, _notes = attach(code, config, understand(config))
    changed["ctxforge"] = {**changed["ctxforge"], **changes}
    shutil.copytree(source, target)
    (target / "config.json").write_text(json.dumps(changed))
    for name, content in files.items():
        (target / name).write_bytes(content)
    return remote(target)


@pytest.mark.parametrize("model_type", sorted(SERVED))
def test_served_types_compute_what_the_stock_model_does(model_type: str, tmp_path: Path) -> None:
    source, ids = build(model_type, tmp_path / "stock"), tokens(2, LENGTH)
    reference = stock(source)
    wanted = whole(reference, ids)
    model = carry(source, tmp_path / "xpos", 1e11)
    assert difference(whole(model, ids), wanted) < 1e-5
    # Linear-attention layers chunk differently in the stock model too.
    noise = difference(chunked(reference, ids, 7), wanted)
    assert difference(chunked(model, ids, 7), wanted) < max(1e-5, 2 * noise)
    model.save_pretrained(tmp_path / "again")
    assert difference(whole(remote(tmp_path / "again"), ids), wanted) < 1e-5
    wrong = "half-split" if model.config.ctxforge["layout"] == "interleaved" else "interleaved"
    assert difference(whole(carry(source, tmp_path / "wrong", 1e11, layout=wrong), ids), wanted) > 1e-3
    assert difference(whole(carry(source, tmp_path / "decaying", 20), ids), wanted) > 1e-3
