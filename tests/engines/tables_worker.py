"""Run by an engine's own Python: the rotary table that its code builds for each config on stdin.

stdin: JSON {"engine": "vllm" | "mlx-lm" | "transformers", "configs": {name: config}}.
stdout, last line: JSON {name: {"frequencies": [...], "temperature": a, "positions": rows or null} or {"error": text}}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from types import SimpleNamespace
from typing import Any

Config = dict[str, Any]
FAR = 1000


def keys(config: Config) -> Config:
    return {key: value for key, value in config.items() if key not in ("architectures", "model_type")}


def resolve(near: list[float], far: list[float]) -> list[float]:
    """Frequencies from the angles at positions 1 and FAR: the latter for pairs too slow for the former's digits."""
    return [one if one * FAR > 3 else many / FAR for one, many in zip(near, far, strict=True)]


def vllm_table(config: Config) -> Config:
    """get_rope as vllm/model_executor/models/llama.py calls it; its cache holds cos and sin times the temperature."""
    import torch
    import vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope as lists
    from transformers import LlamaConfig
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    read = LlamaConfig(**keys(config))
    longest = read.max_position_embeddings
    lists.get_current_vllm_config = lambda: SimpleNamespace(model_config=SimpleNamespace(max_model_len=longest))
    with set_current_vllm_config(VllmConfig()):
        rope = get_rope(128, longest, True, read.rope_parameters, torch.float32)
    cache = getattr(rope, "cos_sin_cache", None)
    if cache is None:
        cache = rope.long_short_cos_sin_cache[rope.original_max_position_embeddings :]
    cos, sin = cache[1].double().chunk(2)
    far_cos, far_sin = cache[FAR].double().chunk(2)
    return {
        "frequencies": resolve(torch.atan2(sin, cos).tolist(), torch.atan2(far_sin, far_cos).tolist()),
        "temperature": float((cos**2 + sin**2).mean().sqrt()),
        "positions": cache.shape[0],
    }


def mlx_table(config: Config) -> Config:
    """The rope that mlx_lm/models/llama.py builds, seen through what it does to (1, 0) in each pair at position 1."""
    import mlx.core as mx
    from mlx_lm.models.llama import Attention, ModelArgs

    made = {"num_key_value_heads": 32, "intermediate_size": 64, "rms_norm_eps": 1e-6, "vocab_size": 8, **config}
    rope = Attention(ModelArgs.from_dict(made)).rope
    x = mx.concatenate([mx.ones((64,)), mx.zeros((64,))]).reshape(1, 1, 1, 128)
    turned, far = rope(x, offset=1).reshape(128), rope(x, offset=FAR).reshape(128)
    cos, sin = turned[:64], turned[64:]
    return {
        "frequencies": resolve(mx.arctan2(sin, cos).tolist(), mx.arctan2(far[64:], far[:64]).tolist()),
        "temperature": float(mx.sqrt((cos**2 + sin**2).mean())),
        "positions": None,
    }


def transformers_table(config: Config) -> Config:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = LlamaRotaryEmbedding(LlamaConfig(**keys(config)))
    return {"frequencies": rope.inv_freq.tolist(), "temperature": rope.attention_scaling, "positions": None}


TABLES = {"vllm": vllm_table, "mlx-lm": mlx_table, "transformers": transformers_table}


def main() -> None:
    request = json.load(sys.stdin)
    found: dict[str, Config] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name, config in request["configs"].items():
            try:
                found[name] = TABLES[request["engine"]](config)
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
