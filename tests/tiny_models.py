"""A tiny model of each supported architecture, with sharp attention, saved as a checkpoint folder.

initializer_range is 0.2: at the usual 0.02 attention is nearly uniform, and a wrong rotation would hardly show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

TRAINED = 64
_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The window stays above the trained length where one is set, so that positions past it matter.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "phi3": {"original_max_position_embeddings": TRAINED},
    "gemma2": {"head_dim": 16, "sliding_window": 100, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16, "sliding_window_pattern": 3},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5, "qk_layernorm": False, "use_qkv_bias": True},
    "stablelm-qk": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "olmo2": {},
    "smollm3": {"no_rope_layer_interval": 3},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": 100,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    },
}


def tiny_config(kind: str) -> Any:
    """The configuration of one tiny model."""
    changes = {key: value for key, value in {**_COMMON, **TINY[kind]}.items() if value is not None}
    if kind == "mistral":
        changes["sliding_window"] = None
    return AutoConfig.for_model(kind.split("-")[0], **changes)


def save_tiny(kind: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save one tiny model to `folder` as transformers 5 writes it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TRAINED}))
    return folder


def load(folder: Path, **options: Any) -> Any:
    """The model in `folder`, float32, eager attention (the one every architecture offers)."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    ).eval()


def logits(model: Any, length: int, *, seed: int = 1) -> torch.Tensor:
    """Logits [1, length, vocabulary] of fixed random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 96, (1, length), generator=generator)
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return output


def set_rotation(model: Any, layer_type: str | None, frequencies: Any, temperature: float) -> None:
    """Overwrite a loaded model's rotary table: the reference that an emitted checkpoint is compared with."""
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    prefix = f"{layer_type}_" if layer_type else ""
    buffer = getattr(rotary, f"{prefix}inv_freq")
    assert buffer.shape == (len(frequencies),)
    buffer.copy_(torch.tensor(frequencies, dtype=torch.float64))
    setattr(rotary, f"{prefix}attention_scaling", temperature)
