"""Small GGUF files made by the gguf library, and the config they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

LAYERS, HEADS, HEAD_DIM = 2, 2, 16


def build_gguf(
    path: Path,
    *,
    arch: str = "llama",
    scaling: bool = True,
    freqs: list[float] | None = None,
    alignment: int | None = None,
) -> Path:
    """Random tensors, one of them quantised and none a multiple of the alignment long; `freqs` in the middle."""
    writer = GGUFWriter(path, arch)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_context_length(256)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_token_list(["a", "<b>", "çà"])
    writer.add_token_scores([0.0, 1.0, -2.5])
    writer.add_add_bos_token(False)
    if scaling:
        writer.add_string(f"{arch}.rope.scaling.type", "yarn")
        writer.add_float32(f"{arch}.rope.scaling.factor", 4.0)
        writer.add_uint32(f"{arch}.rope.scaling.original_context_length", 64)
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.standard_normal((3, 5), dtype=np.float32))
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.array(freqs, np.float32))
    packed = rng.integers(0, 255, (4, 34), dtype=np.uint8)
    writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", rng.standard_normal(7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def build_folder(folder: Path, rope: dict[str, Any] | None, **changes: Any) -> Path:
    """A Llama folder's config.json with this `rope_scaling`."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HEADS * HEAD_DIM,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rope_scaling": rope,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def longrope(divisors: list[float], *, attention_factor: float = 1.0) -> dict[str, Any]:
    """Equal lists from 64 to 256 tokens."""
    return {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": divisors,
        "long_factor": divisors,
        "original_max_position_embeddings": 64,
        "attention_factor": attention_factor,
    }


def fields(path: Path) -> dict[str, Any]:
    """Every metadata entry, by the gguf library."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes, by the gguf library."""
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}
