"""Rows of Gemma's types."""

from __future__ import annotations

from dataclasses import replace

from ctxforge.rope.architectures.shared import GEMMA_NORM, HEAD_NORM, WRAPPED, every
from ctxforge.rope.architectures.types import Architecture, TableRow

_TABLES = (
    TableRow("full_attention", {"rope_theta": 1_000_000.0}, base_key="rope_theta", takes_scaling=True),
    TableRow("sliding_attention", {"rope_theta": 10_000.0}, base_key="rope_local_base_freq", windowed=True),
)
_GEMMA2 = Architecture(layers=every(2), default_window=4096, default_head_dim=256, default_max_position_embeddings=8192)
_GEMMA3 = Architecture(
    default_base=1_000_000.0,
    layers=every(6, "sliding_window_pattern"),
    default_window=4096,
    default_head_dim=256,
    default_heads=8,
    default_hidden=2304,
    default_layers=26,
    tables=_TABLES,
    default_max_position_embeddings=131072,
    query_norm=GEMMA_NORM,
)
_GEMMA3N = replace(
    _GEMMA3,
    layers=every(5),
    default_window=512,
    default_hidden=2048,
    default_layers=35,
    default_max_position_embeddings=32768,
    query_norm=HEAD_NORM,
)
_GEMMA4 = Architecture(
    layers=every(6, last=True),
    default_window=512,
    default_head_dim=256,
    default_heads=8,
    default_hidden=2304,
    default_layers=30,
    tables=(
        TableRow(
            "full_attention",
            {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
            head_dim_key="global_head_dim",
            default_head_dim=512,
        ),
        TableRow("sliding_attention", {"rope_theta": 10_000.0}, windowed=True),
    ),
    default_max_position_embeddings=131072,
    query_norm=HEAD_NORM,
    # longrope does not load where head_dim differs by layer: 5.24's check of its lists asks for one head_dim.
    scaling_types=("default", "linear", "dynamic", "yarn", "llama3", "proportional"),
    legacy="absent",
    legacy_scaling=False,
)
_UNIFIED = replace(_GEMMA4, default_window=1024, default_max_position_embeddings=262144)
_WRAPPER = {"config_path": ("text_config",), "layer_prefixes": WRAPPED}
_DRAFTER = ("a draft model that attends to its target's keys: convert the target in the same way",)

GEMMA: dict[str, Architecture] = {
    "gemma2": _GEMMA2,
    "vaultgemma": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3": replace(_GEMMA3, **_WRAPPER),  # type: ignore[arg-type]
    "gemma3n_text": _GEMMA3N,
    "gemma3n": replace(_GEMMA3N, **_WRAPPER),  # type: ignore[arg-type]
    "gemma4_text": _GEMMA4,
    "gemma4": replace(_GEMMA4, **_WRAPPER),  # type: ignore[arg-type]
    "gemma4_assistant": replace(_GEMMA4, notes=_DRAFTER, **_WRAPPER),  # type: ignore[arg-type]
    "gemma4_unified_text": _UNIFIED,
    "gemma4_unified": replace(_UNIFIED, **_WRAPPER),  # type: ignore[arg-type]
    "gemma4_unified_assistant": replace(_UNIFIED, notes=_DRAFTER, **_WRAPPER),  # type: ignore[arg-type]
}
