"""Rows of types that rotate whole heads with one table, and attend fully unless a window is set for all layers."""

from __future__ import annotations

from ctxforge.rope.architectures.shared import ALL_WINDOWED, FLAT_NORM, HEAD_NORM, QKV_PROJ
from ctxforge.rope.architectures.types import Architecture, Layers, QueryTensor

_LLAMA31 = (
    ("rope_type", "llama3"),
    ("factor", 8.0),
    ("original_max_position_embeddings", 8192),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
)
_APERTUS = Architecture(
    default_base=12_000_000.0,
    default_max_position_embeddings=65536,
    default_scaling=_LLAMA31,
    query_norm=HEAD_NORM,
)
_PHI3 = Architecture(
    layers=ALL_WINDOWED,
    fraction_key="partial_rotary_factor",
    scaling_types=("default", "longrope"),
    aliases=(("yarn", "longrope"),),
    legacy_types=("longrope",),
    legacy_keys=("type", "short_factor", "long_factor"),
    original_length_key="original_max_position_embeddings",
    default_original_length=4096,
    default_max_position_embeddings=4096,
    query=QKV_PROJ,
)
_TWO_KEYS = {"legacy_types": ("linear", "dynamic"), "legacy_keys": ("type", "factor")}
_HUNYUAN = Architecture(
    default_max_position_embeddings=2048,
    spell_head_dim=True,
    alpha=True,
    legacy_types=("linear", "yarn", "longrope", "llama3"),
    norm_after_rotation=True,
    query_norm=QueryTensor(("self_attn.query_layernorm.weight",), "shared"),
)
_LLAMA = Architecture(default_max_position_embeddings=2048)

LLAMA_LIKE: dict[str, Architecture] = {
    "llama": _LLAMA,
    "apertus": _APERTUS,
    "apertus1p5_text": Architecture(
        default_base=12_000_000.0,
        default_max_position_embeddings=65536,
        default_scaling=_LLAMA31,
        query_norm=HEAD_NORM,
        legacy="absent",
    ),
    "arcee": Architecture(default_max_position_embeddings=4096),
    "aria_text": _LLAMA,
    "bitnet": Architecture(default_base=500_000.0, default_max_position_embeddings=2048),
    "cohere": Architecture(
        default_base=500_000.0,
        legacy_default_base=10000.0,
        default_max_position_embeddings=8192,
        layout="interleaved",
        query_norm=QueryTensor(("self_attn.q_norm.weight",), "matrix", when="use_qk_norm"),
    ),
    "diffllama": _LLAMA,
    "doge": Architecture(default_max_position_embeddings=2048, query_norm=HEAD_NORM),
    "ernie4_5": Architecture(
        default_base=500_000.0,
        default_head_dim=128,
        default_max_position_embeddings=131072,
        layout="interleaved",
    ),
    "ernie4_5_moe": Architecture(default_base=500_000.0, default_max_position_embeddings=131072, layout="interleaved"),
    "exaone": Architecture(
        default_base=500_000.0,
        default_max_position_embeddings=4096,
        keys=(("num_hidden_layers", "num_layers"),),
        legacy="absent",
        query=QueryTensor(("attn.attention.q_proj.weight",)),
        layer_prefixes=("transformer.h.{layer}.",),
    ),
    "flex_olmo": Architecture(default_base=500_000.0, default_max_position_embeddings=4096, query_norm=FLAT_NORM),
    "gemma": Architecture(default_head_dim=256, default_max_position_embeddings=8192),
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "granitemoeshared": _LLAMA,
    "helium": Architecture(
        default_base=100_000.0,
        default_head_dim=128,
        default_max_position_embeddings=4096,
        layout="interleaved",
    ),
    "hrm_text": Architecture(
        keys=(("num_hidden_layers", "num_layers_per_stack"),),
        layer_multiple=2,
        default_head_dim=128,
        default_max_position_embeddings=2048,
        legacy="absent",
        query=QueryTensor(("attn.gqkv_proj.weight",), "after-gate"),
        layer_prefixes=("model.H_module.layers.{layer}.", "model.L_module.layers.{half}."),
        notes=("two stacks of layers run in turns: layers are counted once a stack, not once a turn",),
    ),
    "hunyuan_v1_dense": _HUNYUAN,
    "hunyuan_v1_moe": _HUNYUAN,
    "hy_v3": Architecture(
        default_base=11_158_840.0,
        default_head_dim=128,
        default_max_position_embeddings=131072,
        query_norm=HEAD_NORM,
        legacy="absent",
    ),
    "hyperclovax": Architecture(default_max_position_embeddings=2048, legacy="absent"),
    "internlm3": Architecture(default_max_position_embeddings=32768, legacy="absent"),
    "iquestcoder": Architecture(default_max_position_embeddings=131072, legacy="absent"),
    "jais2": Architecture(default_max_position_embeddings=8192, legacy="absent"),
    "jetmoe": Architecture(
        keys=(("head_dim", "kv_channels"),),
        default_head_dim=128,
        default_max_position_embeddings=4096,
        no_fold="its query is a mixture of experts' outputs",
    ),
    "ministral": Architecture(
        spell_head_dim=True, layers=ALL_WINDOWED, default_window=4096, default_max_position_embeddings=131072
    ),
    "ministral3": Architecture(
        default_head_dim=128,
        default_max_position_embeddings=262144,
        layers=ALL_WINDOWED,
        legacy="absent",
        default_base=1_000_000.0,
        default_scaling=(
            ("rope_type", "yarn"),
            ("factor", 16.0),
            ("original_max_position_embeddings", 16384),
            ("beta_fast", 32.0),
            ("beta_slow", 1.0),
            ("mscale_all_dim", 1.0),
            ("mscale", 1.0),
            ("llama_4_scaling_beta", 0.1),
        ),
        query_temperature="llama_4_scaling_beta",
        keeps_original_length=True,
    ),
    "mistral": Architecture(layers=ALL_WINDOWED, default_window=4096, default_max_position_embeddings=131072),
    "mixtral": Architecture(
        default_base=1_000_000.0,
        layers=ALL_WINDOWED,
        spell_head_dim=True,
        default_max_position_embeddings=131072,
    ),
    "moshi": Architecture(
        layers=ALL_WINDOWED,
        default_window=3000,
        default_max_position_embeddings=3000,
        query=QueryTensor(("self_attn.q_proj.linear.weight",)),
        layer_prefixes=("model.layers.{layer}.", "decoder.model.layers.{layer}."),
    ),
    "nanochat": Architecture(
        default_max_position_embeddings=2048,
        direction=-1,
        norm_after_rotation=True,
        legacy="absent",
        no_fold="a norm without weights follows the rotation",
    ),
    "olmo": Architecture(
        default_max_position_embeddings=2048,
        clip_path=("clip_qkv",),
        **_TWO_KEYS,  # type: ignore[arg-type]
    ),
    "olmo2": Architecture(
        default_max_position_embeddings=2048,
        query_norm=FLAT_NORM,
        **_TWO_KEYS,  # type: ignore[arg-type]
    ),
    "olmoe": Architecture(default_max_position_embeddings=4096, query_norm=FLAT_NORM, clip_path=("clip_qkv",)),
    "phi3": _PHI3,
    "phi4_multimodal": Architecture(
        layers=ALL_WINDOWED,
        fraction_key="partial_rotary_factor",
        scaling_types=("default", "longrope"),
        aliases=(("yarn", "longrope"),),
        legacy_types=("longrope",),
        legacy_keys=("type", "short_factor", "long_factor"),
        original_length_key="original_max_position_embeddings",
        default_original_length=4096,
        default_max_position_embeddings=131072,
        query=QueryTensor(("self_attn.qkv_proj.weight", "self_attn.qkv_proj.base_layer.weight")),
    ),
    "phimoe": Architecture(
        default_base=1_000_000.0,
        layers=ALL_WINDOWED,
        default_max_position_embeddings=131072,
        scaling_types=("default", "longrope"),
        mscale_keys=True,
    ),
    "qwen2": Architecture(
        layers=Layers("from-layer", period=28, key="max_window_layers"),
        window_flag="use_sliding_window",
        default_window=4096,
        default_max_position_embeddings=32768,
    ),
    "qwen2_moe": Architecture(
        layers=Layers("before-layer", period=28, key="max_window_layers"),
        window_flag="use_sliding_window",
        default_window=4096,
        default_max_position_embeddings=32768,
    ),
    "qwen3": Architecture(
        layers=Layers("from-layer", period=28, key="max_window_layers"),
        window_flag="use_sliding_window",
        default_window=4096,
        default_head_dim=128,
        default_max_position_embeddings=32768,
        query_norm=HEAD_NORM,
    ),
    "qwen3_moe": Architecture(
        layers=ALL_WINDOWED,
        window_flag="use_sliding_window",
        default_window=4096,
        default_max_position_embeddings=32768,
        query_norm=HEAD_NORM,
    ),
    "seed_oss": Architecture(default_head_dim=128, default_max_position_embeddings=524288),
    "smollm3": Architecture(
        default_base=2_000_000.0,
        unrotated=("no_rope_layers", "no_rope_layer_interval", 4),
        window_flag="use_sliding_window",
        default_max_position_embeddings=32768,
    ),
    "solar_open": Architecture(
        default_base=1_000_000.0,
        default_head_dim=128,
        fraction_key="partial_rotary_factor",
        default_max_position_embeddings=131072,
        legacy="absent",
    ),
    "starcoder2": Architecture(layers=ALL_WINDOWED, default_max_position_embeddings=4096),
}
