"""Every served model type: at a scale base without bound, xPos is RoPE, so the converted model is the stock model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ctxforge.rope.architectures import ARCHITECTURES
from ctxforge.rope.custom_code import SERVED, wrap
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
_INTERLEAVED = {"cohere", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "helium"}


def build(model_type: str, folder: Path) -> tuple[Path, list[int]]:
    """A tiny stock model with sharp attention and norms away from 1, and its layers without RoPE."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_OPTIONS, **_FURTHER.get(model_type, {})})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    marks = getattr(config, "no_rope_layers", None) or []
    return folder, [layer for layer, rotates in enumerate(marks) if not rotates]


def carry(source: Path, target: Path, model_type: str, layout: str, unrotated: list[int], scale_base: float) -> Any:
    """The model of `source` with xPos, loaded from `target`."""
    code = CustomCode("xpos", {"scale_base": scale_base, "block_length": None})
    config = json.loads((source / "config.json").read_text())
    entry = {"layout": layout, "unrotated_layers": unrotated}
    changed, files, _notes = wrap(code, config, model_type, SERVED[model_type], entry)
    shutil.copytree(source, target)
    (target / "config.json").write_text(json.dumps(changed))
    for name, content in files.items():
        (target / name).write_bytes(content)
    return remote(target)


@pytest.mark.parametrize("model_type", sorted(SERVED))
def test_served_types_compute_what_the_stock_model_does(model_type: str, tmp_path: Path) -> None:
    source, unrotated = build(model_type, tmp_path / "stock")
    layout = "interleaved" if model_type in _INTERLEAVED else "half-split"
    if model_type in ARCHITECTURES:
        assert ARCHITECTURES[model_type].layout == layout
    ids = tokens(2, LENGTH)
    reference = stock(source)
    wanted = whole(reference, ids)
    model = carry(source, tmp_path / "xpos", model_type, layout, unrotated, 1e11)
    assert difference(whole(model, ids), wanted) < 1e-5
    # Linear-attention layers chunk differently in the stock model too.
    noise = difference(chunked(reference, ids, 7), wanted)
    assert difference(chunked(model, ids, 7), wanted) < max(1e-5, 2 * noise)
    model.save_pretrained(tmp_path / "again")
    assert difference(whole(remote(tmp_path / "again"), ids), wanted) < 1e-5
    wrong = "half-split" if layout == "interleaved" else "interleaved"
    for name, pairs, scale_base in (("wrong", wrong, 1e11), ("decaying", layout, 20)):
        control = carry(source, tmp_path / name, model_type, pairs, unrotated, scale_base)
        assert difference(whole(control, ids), wanted) > 1e-3
