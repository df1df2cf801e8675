"""Rows of types in which only some layers attend; the others are linear attention, convolutions or state spaces."""

from __future__ import annotations

from dataclasses import replace

from ctxforge.rope.architectures.shared import (
    FLAT_NORM,
    GEMMA_NORM,
    HEAD_NORM,
    LINEAR_AND_FULL,
    Q_LAYERNORM,
    WRAPPED,
    full_every,
)
from ctxforge.rope.architectures.types import Architecture, Layers, TableRow

_QWEN_NEXT = Architecture(
    fraction_key="partial_rotary_factor",
    default_fraction=0.25,
    layers=full_every(4, "full_attention_interval"),
    default_head_dim=256,
    default_max_position_embeddings=32768,
    query_norm=GEMMA_NORM,
)
_QWEN35 = replace(_QWEN_NEXT, legacy="absent")
_QWEN4 = replace(
    _QWEN35,
    default_fraction=1.0,
    layers=Layers(
        "every",
        ("linear_attention", "indexed_attention"),
        4,
        "full_attention_interval",
        aliases=(("full_attention", "indexed_attention"), ("qwen_sparse_attention", "indexed_attention")),
    ),
    indexer=True,
)
_WRAPPER = {"config_path": ("text_config",), "layer_prefixes": WRAPPED}

HYBRID: dict[str, Architecture] = {
    "qwen3_next": _QWEN_NEXT,
    "qwen3_5_text": _QWEN35,
    "qwen3_5": replace(_QWEN35, **_WRAPPER),  # type: ignore[arg-type]
    "qwen3_5_moe_text": _QWEN35,
    "qwen3_5_moe": replace(_QWEN35, **_WRAPPER),  # type: ignore[arg-type]
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": replace(_QWEN4, **_WRAPPER),  # type: ignore[arg-type]
    "bamba": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.5,
        layers=Layers("indices", LINEAR_AND_FULL, key="attn_layer_indices", list_key="layers_block_type"),
        default_max_position_embeddings=262144,
    ),
    "deepseek_v4": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.125,
        rotates_tail=True,
        rotates_values=True,
        layout="interleaved",
        default_head_dim=512,
        layers=Layers("listed"),
        default_window=128,
        tables=(
            TableRow("main", {"rope_theta": 10_000.0}, ("sliding_attention",), base_key="rope_theta", windowed=True),
            TableRow(
                "compress",
                {"rope_theta": 160_000.0},
                ("heavily_compressed_attention", "compressed_sparse_attention"),
                base_key="compress_rope_theta",
                takes_scaling=True,
            ),
        ),
        default_max_position_embeddings=1048576,
        legacy="absent",
        legacy_scaling=False,
        indexer=True,
        no_fold="a norm without weights follows the projection",
    ),
    "falcon_h1": Architecture(legacy_default_base=100_000.0, default_max_position_embeddings=8192),
    "granitemoehybrid": Architecture(
        requires=("position_embedding_type", None, "rope", "its attention has no positions"),
        layers=Layers("all", ("linear_attention",)),
        default_max_position_embeddings=2048,
    ),
    "lara_mini": Architecture(
        layers=Layers(
            "cycle",
            ("linear_attention", "sliding_attention", "linear_attention", "full_attention", "sliding_attention"),
        ),
        default_window=512,
        rotating=("sliding_attention",),
        default_head_dim=128,
        default_max_position_embeddings=131072,
        query_norm=HEAD_NORM,
        legacy="absent",
    ),
    "lfm2": Architecture(
        default_base=1_000_000.0,
        layers=Layers("indices", ("conv", "full_attention"), key="full_attn_idxs"),
        default_max_position_embeddings=128000,
        query_norm=Q_LAYERNORM,
    ),
    "lfm2_moe": Architecture(
        default_base=1_000_000.0,
        layers=Layers("listed"),
        default_max_position_embeddings=128000,
        query_norm=Q_LAYERNORM,
        legacy="absent",
    ),
    "lfm3": Architecture(
        default_base=1_000_000.0,
        layers=Layers("cycle", ("sliding_attention", "conv", "full_attention", "conv"), first=("conv",)),
        default_window=256,
        default_head_dim=128,
        tables=(
            TableRow(
                "full_attention",
                {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1_000_000.0},
            ),
            TableRow("sliding_attention", {"rope_theta": 10_000.0}, windowed=True),
        ),
        default_max_position_embeddings=128000,
        query_norm=HEAD_NORM,
        legacy="absent",
        legacy_scaling=False,
    ),
    "minimax": Architecture(
        default_base=1_000_000.0,
        spell_head_dim=True,
        layers=Layers("every", ("full_attention", "linear_attention"), 2),
        default_max_position_embeddings=131072,
    ),
    "olmo_hybrid": Architecture(
        layers=Layers("every", LINEAR_AND_FULL, 4),
        default_max_position_embeddings=65536,
        query_norm=FLAT_NORM,
        legacy="absent",
        notes=("checkpoints with a null rope_theta have no positions at all, and are refused",),
    ),
    "zamba2": Architecture(
        requires=("use_mem_rope", False, True, "its attention has no positions"),
        keys=(("head_dim", "attention_head_dim"),),
        head_dim_factor=2,
        layers=Layers("listed", list_key="layers_block_type"),
        default_max_position_embeddings=4096,
        no_fold="one attention block serves several layers",
    ),
    "zaya": Architecture(
        fraction_key="partial_rotary_factor",
        layers=Layers("all", ("hybrid",)),
        default_head_dim=128,
        tables=(
            TableRow("hybrid", {"rope_theta": 5_000_000.0, "partial_rotary_factor": 0.5}),
            TableRow("hybrid_sliding", {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}, windowed=True),
        ),
        default_max_position_embeddings=131072,
        legacy="absent",
        legacy_scaling=False,
        no_fold="convolutions and a norm without weights follow the projection",
    ),
}
