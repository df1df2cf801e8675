"""Rows of types that rotate a fraction of each head, and of types whose q, k and v come fused."""

from __future__ import annotations

from ctxforge.rope.architectures.shared import FLAT_NORM, GEMMA_NORM
from ctxforge.rope.architectures.types import Architecture, QueryTensor

_GLM = Architecture(
    fraction_key="partial_rotary_factor",
    default_fraction=0.5,
    default_head_dim=128,
    default_max_position_embeddings=131072,
    layout="interleaved",
)

PARTIAL: dict[str, Architecture] = {
    "glm": _GLM,
    "glm4": _GLM,
    "glm4_moe": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.5,
        default_max_position_embeddings=131072,
        query_norm=QueryTensor(("self_attn.q_norm.weight",), "shared", when="use_qk_norm"),
    ),
    "gpt_neox": Architecture(
        base_key="rotary_emb_base",
        fraction_key="rotary_pct",
        default_fraction=0.25,
        default_max_position_embeddings=2048,
        query=QueryTensor(("attention.query_key_value.weight", "attention.query_key_value.bias"), "interleaved-qkv"),
        layer_prefixes=("gpt_neox.layers.{layer}.",),
    ),
    "gpt_neox_japanese": Architecture(
        base_key="rotary_emb_base",
        fraction_key="rotary_pct",
        default_max_position_embeddings=2048,
        query=QueryTensor(("attention.query_key_value.weight",), "interleaved-qkv"),
        layer_prefixes=("gpt_neox_japanese.layers.{layer}.",),
    ),
    "minimax_m2": Architecture(
        default_base=5_000_000.0,
        fraction_key="partial_rotary_factor",
        rotary_dim_key="rotary_dim",
        default_head_dim=128,
        default_max_position_embeddings=196608,
        query_norm=FLAT_NORM,
        legacy="absent",
    ),
    "minimax_m3_vl_text": Architecture(
        default_base=5_000_000.0,
        fraction_key="partial_rotary_factor",
        default_head_dim=128,
        default_max_position_embeddings=524288,
        query_norm=GEMMA_NORM,
        indexer=True,
        legacy="absent",
    ),
    "nemotron": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.5,
        default_head_dim=128,
        default_max_position_embeddings=4096,
        legacy="other",
        legacy_reason="it takes no scaling for this type",
    ),
    "persimmon": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.5,
        legacy_default_base=25000.0,
        head_dim_ignored=True,
        default_max_position_embeddings=16384,
        query=QueryTensor(("self_attn.query_key_value.weight", "self_attn.query_key_value.bias"), "interleaved-qkv"),
        query_norm=QueryTensor(
            ("self_attn.q_layernorm.weight", "self_attn.q_layernorm.bias"),
            "shared",
            when="qk_layernorm",
            when_default=True,
        ),
    ),
    "phi": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.5,
        default_max_position_embeddings=2048,
        query_norm=QueryTensor(
            ("self_attn.q_layernorm.weight", "self_attn.q_layernorm.bias"), "shared", when="qk_layernorm"
        ),
    ),
    "sarvam_moe": Architecture(
        default_base=8_000_000.0,
        fraction_key="partial_rotary_factor",
        default_max_position_embeddings=131072,
        legacy="absent",
        query=QueryTensor(("attention.query_key_value.weight",)),
        query_norm=QueryTensor(("attention.query_layernorm.weight",), "shared", when="use_qk_norm", when_default=True),
    ),
    "stablelm": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.25,
        head_dim_ignored=True,
        default_max_position_embeddings=4096,
        query_norm=QueryTensor(("self_attn.q_layernorm.norms.{head}.weight",), "shared", when="qk_layernorm"),
    ),
    "dbrx": Architecture(
        keys=(
            ("num_attention_heads", "n_heads"),
            ("hidden_size", "d_model"),
            ("num_hidden_layers", "n_layers"),
            ("max_position_embeddings", "max_seq_len"),
        ),
        legacy_base_path=("attn_config", "rope_theta"),
        head_dim_ignored=True,
        default_heads=16,
        default_hidden=2048,
        default_layers=24,
        default_max_position_embeddings=2048,
        legacy="other",
        legacy_reason="it takes no scaling for this type",
        clip_path=("attn_config", "clip_qkv"),
        query=QueryTensor(("norm_attn_norm.attn.Wqkv.weight",)),
        layer_prefixes=("transformer.blocks.{layer}.",),
    ),
    "falcon": Architecture(
        requires=("alibi", False, False, "this model's positions are ALiBi, not RoPE"),
        head_dim_ignored=True,
        default_max_position_embeddings=2048,
        query=QueryTensor(("self_attention.query_key_value.weight", "self_attention.query_key_value.bias"), "falcon"),
        layer_prefixes=("transformer.h.{layer}.", "h.{layer}."),
    ),
}
