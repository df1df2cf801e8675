"""Rows of types with multi-head latent attention: a slice of each head rotates, and the keys' slice has one head."""

from __future__ import annotations

from dataclasses import replace

from ctxforge.rope.architectures.shared import WRAPPED, full_every
from ctxforge.rope.architectures.types import Architecture, Layers, QueryTensor, TableRow

_QUERY = QueryTensor(("self_attn.q_b_proj.weight",), instead=("self_attn.q_proj.weight",))
_V3 = Architecture(
    rotated_key="qk_rope_head_dim",
    scales_softmax=True,
    layout="interleaved",
    default_max_position_embeddings=4096,
    query=_QUERY,
)
_NEW = replace(_V3, legacy="absent")
_BY_KEY = replace(_NEW, layout_key="rope_interleave")
# longrope does not load where head_dim differs by layer: 5.24's check of its lists asks for one head_dim.
_LOADABLE = ("default", "linear", "dynamic", "yarn", "llama3")
_DOTS3 = Architecture(
    rotated_key="qk_rope_head_dim",
    layout="interleaved",
    default_max_position_embeddings=524288,
    default_head_dim=256,
    layers=Layers(
        "cycle",
        ("sliding_attention", "indexed_attention", "sliding_attention", "sliding_attention"),
        first=("indexed_attention", "indexed_attention"),
        aliases=(("full_attention", "indexed_attention"),),
    ),
    default_window=512,
    tables=(
        TableRow("indexed_attention", {"rope_theta": 80_000_000.0}, base_key="rope_theta"),
        TableRow("sliding_attention", {"rope_theta": 50_000.0}, base_key="swa_rope_theta", windowed=True),
    ),
    scaling_types=_LOADABLE,
    legacy="absent",
    legacy_scaling=False,
    query=_QUERY,
    indexer=True,
)

MLA: dict[str, Architecture] = {
    "deepseek_v2": replace(_V3, default_max_position_embeddings=2048, legacy_scales_softmax=False),
    "deepseek_v3": replace(_V3, layout_key="rope_interleave"),
    "deepseek_v32": replace(_NEW, default_max_position_embeddings=163840, indexer=True),
    "axk1": replace(_BY_KEY, default_max_position_embeddings=32768),
    "axk2": replace(
        _NEW,
        default_rotated=32,
        default_unrotated=64,
        default_max_position_embeddings=131072,
        indexer=True,
        query=QueryTensor(("self_attn.q_b_proj.weight",), "gated"),
    ),
    "bailing_hybrid": replace(
        _NEW,
        default_base=6_000_000.0,
        keys=(("max_position_embeddings", "model_max_length"),),
        layers=full_every(6, "layer_group_size"),
        default_max_position_embeddings=262144,
        query=QueryTensor(("attention.q_b_proj.weight",), instead=("attention.q_proj.weight",)),
    ),
    "glm4_moe_lite": replace(_BY_KEY, default_unrotated=192, default_max_position_embeddings=202752),
    "glm_moe_dsa": replace(_NEW, default_unrotated=192, default_max_position_embeddings=202752, indexer=True),
    "hy_v4": replace(
        _NEW,
        default_unrotated=192,
        default_max_position_embeddings=262144,
        layout="half-split",
        indexer=True,
    ),
    "longcat_flash": replace(
        _V3,
        default_base=10_000_000.0,
        keys=(("num_hidden_layers", "num_layers"),),
        default_layers=28,
        default_max_position_embeddings=131072,
        query=QueryTensor(
            ("self_attn.0.q_b_proj.weight", "self_attn.1.q_b_proj.weight"),
            instead=("self_attn.0.q_proj.weight", "self_attn.1.q_proj.weight"),
        ),
    ),
    "minicpm3": replace(
        _NEW,
        default_rotated=32,
        default_unrotated=64,
        default_max_position_embeddings=32768,
        layout="half-split",
    ),
    "sarvam_mla": replace(
        _BY_KEY,
        aliases=(("deepseek_yarn", "yarn"),),
        query=QueryTensor(("self_attn.q_proj.weight",), instead=("self_attn.q_b_proj.weight",)),
    ),
    "youtu": replace(_BY_KEY, default_max_position_embeddings=131072),
    "dots3_note_text": _DOTS3,
    "dots3_note": replace(_DOTS3, config_path=("text_config",), layer_prefixes=WRAPPED),
}
