"""A tiny configuration of every causal-LM type of the installed transformers: generic sizes, then changes as data.

The generic sizes are applied to whatever of these keys a type's configuration has, its text models inside included.
Layer patterns are such that each kind of layer of the type appears.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
TRAINED = 64
LAYERS = 4

_GENERIC: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim"), 64),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "output_embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("lru_width", "attention_hidden_size", "hidden_size_per_layer_input"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "ffn_hidden_size"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "dff", "dim_ff", "n_inner"), 96),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_experts_intermediate_size",), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "d_head", "dim_head", "attention_head_size", "kv_channels"), 16),
    **dict.fromkeys(("attention_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim",), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts",), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "unpadded_vocab_size"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), TRAINED),
    **dict.fromkeys(("max_target_positions", "model_max_length", "max_source_positions"), TRAINED),
    **dict.fromkeys(("index_topk",), 6),
    **dict.fromkeys(("index_block_size", "index_topk_blocks"), 2),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "local_attention", "attention_chunk_size"), 24),
    **dict.fromkeys(("attention_window_size", "window_size"), 24),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id",), 2),
}

_MLA: dict[str, Any] = {"num_key_value_heads": 4}
_SLIDING_FIRST = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_FULL_FIRST = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
_HYBRID_FIRST = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_TINY_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 12_000_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": TRAINED,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_GPT_OSS_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": TRAINED,
}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": TRAINED,
}
_QSA: dict[str, Any] = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 100,
    "ple_embed_dim": 16,
    "split_ngram_parts": 1,
}
_BLT_PART: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": TRAINED,
    "head_dim": 16,
    "initializer_range": 0.2,
}
_GEMMA3N: dict[str, Any] = {
    "layer_types": _SLIDING_FIRST,
    "num_kv_shared_layers": 0,
    "intermediate_size": [96] * LAYERS,
    "activation_sparsity_pattern": [0.0] * LAYERS,
    "laurel_rank": 8,
}
_DOTS3: dict[str, Any] = {
    **_MLA,
    "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention", "sliding_attention"],
    "per_layer_config": {},
    "head_dim": 24,
    "qk_nope_head_dim": 8,
    "index_head_dim": 32,
}
_GEMMA4_ASSISTANT: dict[str, Any] = {"num_centroids": 8, "centroid_intermediate_top_k": 2, "backbone_hidden_size": 64}

CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "sarvam_mla",
            "youtu",
        ),
        _MLA,
    ),
    "apertus": {"rope_parameters": _LLAMA3, "max_position_embeddings": 8 * TRAINED},
    "apertus1p5_text": {"rope_parameters": _LLAMA3, "max_position_embeddings": 8 * TRAINED},
    "bailing_hybrid": {**_MLA, "layer_types": _HYBRID_FIRST},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_d_head": 32},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3, 4],
        "patcher_config": _BLT_PART,
        "encoder_config": {**_BLT_PART, "hidden_size_global": 64},
        "decoder_config": {**_BLT_PART, "hidden_size_global": 64},
        "global_config": _BLT_PART,
        "vocab_size": 260,
    },
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": _SLIDING_FIRST,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 50_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "cwm": {
        "rope_parameters": {**_LLAMA3, "rope_theta": 1_000_000.0, "factor": 16.0},
        "max_position_embeddings": 16 * TRAINED,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "hidden_size": 64},
    },
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"],
        "num_hidden_layers": 3,
        "partial_rotary_factor": 0.5,
        "qk_rope_head_dim": 8,
        "o_groups": 2,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "index_topk": 2,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {**_TINY_VISION, "adapter_in_dim": 16, "adapter_out_dim": 64, "per_layer_config": {}},
        "audio_config": {"adapter_out_dim": 64},
    },
    "dots3_note_text": _DOTS3,
    "gemma3": {"text_config": {"layer_types": _SLIDING_FIRST}, "vision_config": _TINY_VISION},
    "gemma3_text": {"layer_types": _SLIDING_FIRST},
    "gemma3n": {
        "text_config": _GEMMA3N,
        "audio_config": {"hidden_size": 16, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2},
    },
    "gemma3n_text": _GEMMA3N,
    "gemma4": {"text_config": {"layer_types": _SLIDING_FIRST, "global_head_dim": 32}},
    "gemma4_text": {"layer_types": _SLIDING_FIRST, "global_head_dim": 32},
    "gemma4_unified": {"text_config": {"layer_types": _SLIDING_FIRST, "global_head_dim": 32}},
    "gemma4_unified_text": {"layer_types": _SLIDING_FIRST, "global_head_dim": 32},
    "gemma4_assistant": {
        "_defaults": {
            "text_config": {
                "model_type": "gemma4_text",
                "hidden_size_per_layer_input": 0,
                "vocab_size_per_layer_input": 0,
                "num_kv_shared_layers": 30,
            }
        },
        **_GEMMA4_ASSISTANT,
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "layer_types": _SLIDING_FIRST,
            "num_kv_shared_layers": 4,
            "global_head_dim": 32,
        },
    },
    "gemma4_unified_assistant": {
        **_GEMMA4_ASSISTANT,
        "text_config": {"layer_types": _SLIDING_FIRST, "num_kv_shared_layers": 4, "global_head_dim": 32},
    },
    "git": {"vision_config": _TINY_VISION},
    "got_ocr2": {"vision_config": {**_TINY_VISION, "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt_oss": {"rope_parameters": _GPT_OSS_YARN, "max_position_embeddings": 4 * TRAINED},
    "granite_swa": {"layer_rope_theta": [10_000.0, 10_000.0, 0.0, 10_000.0]},
    "granitemoe_swa": {"layer_rope_theta": [10_000.0, 10_000.0, 0.0, 10_000.0]},
    "granitemoehybrid": {"layer_types": _HYBRID_FIRST, "position_embedding_type": "rope", "mamba_d_head": 32},
    "hrm_text": {"num_layers_per_stack": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"]},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"]},
    "inkling2_loop_text": {
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
        "n_layers_per_attn_res_block": 1,
        "loop_gate_rank": 8,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "kimi_linear": {**_MLA, "layer_types": _HYBRID_FIRST},
    "kolibri1": {"layer_types": _SLIDING_FIRST},
    "laguna": {"layer_types": _FULL_FIRST},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"]},
    "llama4": {"vision_config": {**_TINY_VISION, "vision_output_dim": 16, "projector_input_dim": 16}},
    "longcat_flash": {**_MLA, "zero_expert_num": 2, "num_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "mellum": {"layer_types": _FULL_FIRST},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "mimo_v2_flash": {"head_dim": 24},
    "ministral": {"head_dim": 16},
    "ministral3": {
        "rope_parameters": {
            **_YARN,
            "rope_theta": 1_000_000.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        "max_position_embeddings": 4 * TRAINED,
    },
    "moss_transcribe_diarize": {
        "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    },
    "musicgen": {"_part": "decoder"},
    "musicgen_melody": {"_part": "decoder"},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 1, "mamba_head_dim": 32},
    "phi4_multimodal": {
        "vision_config": {**_TINY_VISION, "crop_size": 32},
        "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2},
    },
    "qwen4_exp": {"text_config": _QSA, "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2}},
    "qwen4_exp_text": _QSA,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [32, 32],
        "num_buckets": 2,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {"pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "num_hidden_layers": 6,
        "mamba_dt_rank": 8,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "use_mem_rope": True,
        "mamba_headdim": 32,
        "num_query_groups": 4,
        "attention_hidden_size": 128,
    },
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": 24},
}

_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": TRAINED,
}

# Other settings of a type that move the rotation or the query's weights elsewhere, and sources scaled already.
VARIANTS: dict[str, dict[str, Any]] = {
    "axk1:half-split": {"rope_interleave": False},
    "deepseek_v3:yarn": {
        "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        "max_position_embeddings": 4 * TRAINED,
    },
    "deepseek_v3:yarn-uneven": {
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
        "max_position_embeddings": 4 * TRAINED,
    },
    "gemma3_text:scaled": {
        "rope_parameters": {
            "full_attention": {**_YARN, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "max_position_embeddings": 4 * TRAINED,
    },
    "glm4_moe:yarn": {
        "rope_parameters": {**_YARN, "partial_rotary_factor": 0.5},
        "max_position_embeddings": 4 * TRAINED,
    },
    "llama:llama3": {"rope_parameters": _LLAMA3, "max_position_embeddings": 8 * TRAINED},
    "llama4_text:llama3": {"rope_parameters": _LLAMA3, "max_position_embeddings": 8 * TRAINED},
    "minicpm3:longrope": {"rope_parameters": _LONGROPE, "max_position_embeddings": 4 * TRAINED},
    "phi3:longrope": {
        "rope_parameters": {**_LONGROPE, "partial_rotary_factor": 1.0},
        "original_max_position_embeddings": TRAINED,
        "max_position_embeddings": 4 * TRAINED,
    },
    "qwen2:window": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2:yarn": {"rope_parameters": _YARN, "max_position_embeddings": 4 * TRAINED},
    "qwen3_5_text:sections": {
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000_000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    },
    "cohere:qk-norm": {"use_qk_norm": True},
    "deepseek_v2:whole-q": {"q_lora_rank": None},
    "deepseek_v3:half-split": {"rope_interleave": False},
    "deepseek_v3:whole-q": {"q_lora_rank": None},
    "exaone4:no-window": {"sliding_window": None, "layer_types": ["full_attention"] * LAYERS},
    "falcon:alibi": {"alibi": True},
    "falcon:multi-head": {"multi_query": False, "num_kv_heads": 4},
    "falcon:new-decoder": {"new_decoder_architecture": True},
    "glm4_moe:qk-norm": {"use_qk_norm": True},
    "llama4_text:no-qk-norm": {"use_qk_norm": False},
    "phi:qk-norm": {"qk_layernorm": True},
    "stablelm:qk-norm": {"qk_layernorm": True},
}
# Variants without RoPE of types that have it.
OTHER_POSITIONS = ("falcon:alibi",)
# Models that number their tokens themselves, whatever position_ids says.
OWN_POSITIONS = ("blt", "minimax_m3_vl_text", "roformer")


def _merged(defaults: dict[str, Any]) -> dict[str, Any]:
    """The generic sizes of the keys in `defaults`, nested configurations included."""
    found: dict[str, Any] = {}
    for key, value in defaults.items():
        if key in _GENERIC and value is not None:
            found[key] = _GENERIC[key]
        elif key.endswith("_config") and isinstance(value, dict) and key in ("text_config",):
            kept = {"model_type": value["model_type"]} if "model_type" in value else {}
            found[key] = {**kept, **_merged(value)}
    return found


def _updated(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for key, value in second.items():
        nested = key.endswith("_config") and isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _updated(result[key], value) if nested else value
    return result


def tiny_config(name: str) -> Any:
    """The configuration of one tiny model: a type's, or a variant's."""
    model_type, _, variant = name.partition(":")
    changes = {**CHANGES.get(model_type, {}), **(VARIANTS[name] if variant else {})}
    cls = CONFIG_MAPPING[model_type]
    if "_part" in changes:
        cls = type(getattr(cls(), changes["_part"]))
    defaults = cls(**changes.get("_defaults", {})).to_dict()
    own = {key: value for key, value in changes.items() if not key.startswith("_")}
    return cls(**_updated(_merged(defaults), own))


def model_class(model_type: str) -> Any:
    """The class that the mapping gives for a type."""
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


@contextlib.contextmanager
def without_timm() -> Iterator[None]:
    """Give gemma3n's wrapper an empty vision tower: the real one needs two packages that text never uses."""
    from transformers.models.gemma3n import modeling_gemma3n

    class Tower:
        @staticmethod
        def from_config(config: Any) -> Any:
            return torch.nn.Module() if "vision" in config.model_type else AutoModel.from_config(config)

    modeling_gemma3n.AutoModel = Tower
    try:
        yield
    finally:
        modeling_gemma3n.AutoModel = AutoModel


def build(name: str, *, seed: int = 0) -> Any:
    """A tiny model with sharp random weights."""
    return build_from(name, tiny_config(name), seed=seed)


def read_config(name: str, config: dict[str, Any]) -> Any:
    """A parsed config.json as the type's class reads it."""
    return type(tiny_config(name)).from_dict(config)


def build_from(name: str, config: Any, *, seed: int = 0) -> Any:
    """A model of the type of `name` with sharp random weights."""
    torch.manual_seed(seed)
    model_type = name.partition(":")[0]
    with without_timm():
        if "_part" in CHANGES.get(model_type, {}):
            model = model_class(model_type)(config).float().eval()
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name and parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(model_type: str, model: Any, count: int) -> dict[str, Any] | None:
    """What to call the model with where tokens alone won't do: draft models that read another model's keys."""
    if model_type in ("musicgen", "musicgen_melody"):
        return {"input_ids": torch.randint(3, 90, (model.config.num_codebooks, count))}
    if model_type not in ("gemma4_assistant", "gemma4_unified_assistant"):
        return None
    states = {
        layer_type: tuple(torch.randn(1, 2, count, width) for _ in range(2))
        for layer_type, width in (("full_attention", 32), ("sliding_attention", 16))
    }
    embeds = torch.randn(1, count, model.pre_projection.in_features)
    # Without hidden states to give back, gemma4_assistant drops all tokens but the last before its first layer.
    return {"inputs_embeds": embeds, "shared_kv_states": states, "output_hidden_states": True}
