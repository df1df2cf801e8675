"""RoPE-relevant parts of published long-context models' configs, written down from their public model cards.

Each entry: the config, what `inspect` must say of it, and what `check` must. Sizes that do not touch positions are left
out, except where a default would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published config and the right verdicts.

    Attributes:
        config: as published, in the key style that it was published in.
        trained_length: what the weights work at; None where nobody can tell from the config.
        original_length: before the scaling in force; None as above.
        rotated_dims, base: of the table that extends.
        divisors: (first, last) pair's divisor in force.
        temperature: on cos and sin, as transformers 5 computes it.
        passes: `check` passes.
        fails: the checks that fail.
    """

    config: dict[str, Any]
    trained_length: int | None
    original_length: int | None
    rotated_dims: int
    base: float
    divisors: tuple[float, float]
    temperature: float = 1.0
    passes: bool = True
    fails: tuple[str, ...] = field(default=())


PHI3_SHORT = [
    *[1.05] * 3, *[1.1] * 3, *[1.15] * 5, 1.2, 1.25, *[1.3] * 2, 1.35, *[1.5] * 4, 2.0, 2.0, 2.0, 2.0, 2.05, 2.05, 2.05,
    2.1, 2.1, 2.1, 2.15, 2.15, 2.2, 2.25, 2.3, 2.35, 2.4, 2.45, 2.5, 2.55, 2.6, 2.65, 2.7, 2.75, 2.8, 2.85, 2.9, 2.95,
][:48]  # fmt: skip
PHI3_LONG = [
    1.03, 1.05, 1.05, 1.08, 1.23, 1.23, 1.3, 1.45, 1.6, 1.65, 1.9, 2.86, 3.69, 5.42, 5.49, 5.49, 9.09, 11.58, 15.66,
    15.77, 15.79, 18.36, 21.99, 23.08, 30.01, 32.35, 32.59, 35.56, 39.95, 53.84, 56.2, 57.95, 59.29, 59.77, 59.92,
    61.19, 61.96, 62.5, 63.37, 63.48, 63.48, 63.66, 63.85, 64.08, 64.76, 64.8, 64.81, 64.81,
]  # fmt: skip

PUBLISHED: dict[str, Published] = {
    "Llama-3.1-8B": Published(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        131072, 8192, 128, 500000.0, (1.0, 8.0),
    ),
    "Qwen2.5-7B-Instruct, YaRN as its card says": Published(
        {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "num_hidden_layers": 28,
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "sliding_window": 131072,
            "use_sliding_window": False,
            "rope_theta": 1000000.0,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        },
        131072, 32768, 128, 1e6, (1.0, 4.0), 1.1386294361119891, passes=False, fails=("max-positions",),
    ),
    "Qwen3-8B, YaRN as its card says": Published(
        {
            "model_type": "qwen3",
            "hidden_size": 4096,
            "head_dim": 128,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 36,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "sliding_window": None,
            "use_sliding_window": False,
            "rope_theta": 1000000,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        131072, 32768, 128, 1e6, (1.0, 4.0), 1.1386294361119891, passes=False, fails=("max-positions",),
    ),
    "DeepSeek-V3": Published(
        {
            "model_type": "deepseek_v3",
            "hidden_size": 7168,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "num_hidden_layers": 61,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "max_position_embeddings": 163840,
            "rope_theta": 10000,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
        },
        163840, 4096, 64, 10000.0, (1.0, 40.0),
    ),
    "Phi-3-mini-128k-instruct": Published(
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "sliding_window": 262144,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "longrope", "short_factor": PHI3_SHORT, "long_factor": PHI3_LONG},
        },
        131072, 4096, 96, 10000.0, (1.03, 64.81), 1.1902380714238083,
    ),
    "gpt-oss-20b": Published(
        {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "head_dim": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "num_hidden_layers": 24,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072,
            "initial_context_length": 4096,
            "sliding_window": 128,
            "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
        },
        131072, 4096, 64, 150000.0, (1.0, 32.0), 1.3465735902799727,
    ),
    "Yarn-Llama-2-7b-64k": Published(
        {
            "model_type": "llama",
            "auto_map": {"AutoModelForCausalLM": "modeling_llama_together_yarn.LlamaForCausalLM"},
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
            "max_position_embeddings": 65536,
            "rope_scaling": {
                "factor": 16.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
                "finetuned": True,
            },
        },
        65536, 4096, 128, 10000.0, (1.0, 16.0), 1.2772588722239782,
    ),
    "Llama-2-7b-longlora-32k-ft": Published(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "linear", "factor": 8.0},
        },
        None, None, 128, 10000.0, (8.0, 8.0),
    ),
    "gemma-3-4b-it": Published(
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "head_dim": 256,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "num_hidden_layers": 34,
                "max_position_embeddings": 131072,
                "sliding_window": 1024,
                "sliding_window_pattern": 6,
                "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        None, None, 256, 1e6, (8.0, 8.0),
    ),
    "Phi-4-mini-instruct": Published(
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "sliding_window": 262144,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": PHI3_LONG},
        },
        131072, 4096, 96, 10000.0, (1.03, 64.81), 1.1902380714238083,
    ),
    "SmolLM3-3B": Published(
        {
            "model_type": "smollm3",
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_hidden_layers": 36,
            "max_position_embeddings": 65536,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "rope_theta": 5000000.0,
            "rope_scaling": None,
        },
        65536, 65536, 128, 5e6, (1.0, 1.0),
    ),
    "Llama-4-Scout-17B-16E": Published(
        {
            "model_type": "llama4",
            "text_config": {
                "model_type": "llama4_text",
                "hidden_size": 5120,
                "head_dim": 128,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "num_hidden_layers": 48,
                "max_position_embeddings": 10485760,
                "attention_chunk_size": 8192,
                "no_rope_layers": [],
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "factor": 16.0,
                    "high_freq_factor": 1.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192,
                    "rope_type": "llama3",
                },
            },
            "vision_config": {"model_type": "llama4_vision_model"},
        },
        10485760, 8192, 128, 500000.0, (1.0, 16.0),
    ),
}  # fmt: skip
