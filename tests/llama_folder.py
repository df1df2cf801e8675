"""A checkpoint folder written by hand: config, tokenizer config, one safetensors file of zeros. No torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 8,
    "hidden_size": 16,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 8,
}
TENSORS = {"model.embed_tokens.weight": (8, 16), "model.layers.0.self_attn.q_proj.weight": (16, 16)}


def safetensors_bytes(tensors: dict[str, tuple[int, ...]] = TENSORS, dtype: str = "BF16", item: int = 2) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = item
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def write_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 4096, "legacy": False}, indent=2))
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    return folder
