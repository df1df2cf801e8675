"""A tiny model of each type with learned positions, sharp attention, a table that matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

TRAINED = 64
_GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": TRAINED, "initializer_range": 0.2}
_OPT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": TRAINED}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "gpt_bigcode": _GPT2,
    "openai-gpt": _GPT2,
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 24,
        "max_position_embeddings": TRAINED,
        "initializer_range": 0.2,
    },
    "opt": {**_OPT, "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.2},
    "biogpt": {**_OPT, "intermediate_size": 96, "initializer_range": 0.2},
}
TABLE = {
    "gpt2": "transformer.wpe.weight",
    "gpt-sw3": "transformer.wpe.weight",
    "gpt_bigcode": "transformer.wpe.weight",
    "openai-gpt": "transformer.positions_embed.weight",
    "gpt_neo": "transformer.wpe.weight",
    "opt": "model.decoder.embed_positions.weight",
    "biogpt": "biogpt.embed_positions.weight",
}
OFFSET = {"opt": 2, "biogpt": 2}


def save(kind: str, folder: Path, *, model_type: bool = True) -> Path:
    """Save one to `folder` as transformers 5 writes it; gpt-sw3's config under its own name."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=96, bos_token_id=1, eos_token_id=2, pad_token_id=0, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    if model_type:
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**written, "model_type": kind}, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TRAINED}))
    return folder


def load(folder: Path, **options: Any) -> Any:
    """The model in `folder`, float32, eager attention."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    ).eval()


def ids(length: int) -> torch.Tensor:
    """Fixed random tokens [1, length]."""
    return torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(1))


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of one full pass."""
    options = {} if model.config.model_type == "openai-gpt" else {"use_cache": False}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens, **options).logits
    return found


def edit_tensors(folder: Path, change: Any) -> None:
    """Rewrite the weights of `folder` through `change`, a function from state dict to state dict."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
