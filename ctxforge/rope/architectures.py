"""The RoPE of each supported architecture, as data.

A row tells where a config keeps its base, rotated fraction, windows and unrotated layers, and where the query that a
folded temperature must scale lives among the weights. Sources: transformers 5.24 `configuration_*.py` and
`modeling_*.py` of each type, and 4.57 for the legacy keys. Nothing else in ctxforge branches on a model type.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QueryTensor:
    """A tensor whose rows (dimension 0) are query dimensions just before the rotation.

    Attributes:
        names: names inside a layer; `{head}` makes one tensor a head. Absent ones (biases) are skipped.
        arrangement: `heads` rows are head after head; `interleaved-qkv` each head's q, k, v rows follow each other;
            `shared` one head's dimensions, used for all heads.
        offset: the model computes with (w + offset): 1 for Gemma's norms.
        when: config key that must be true for this tensor to exist; None when it always does.
    """

    names: tuple[str, ...]
    arrangement: str = "heads"
    offset: float = 0.0
    when: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        default_base: base when the config names none.
        base_key, local_base_key: legacy top-level keys of the base (and of the windowed layers' base when nested).
        fraction_key, default_fraction: legacy top-level key and default of the rotated fraction of a head; no key when
            the architecture always rotates whole heads.
        layer_types: how layers get their type when `layer_types` is absent: `full`, `window` (all layers, when a
            window is set), `from-layer` (from max_window_layers on, when use_sliding_window), `even` (0, 2, ... are
            windowed), `pattern` (all but each sliding_window_pattern-th).
        spell_head_dim: the config must name head_dim for a scaled type to load: this class keeps a null one, and
            transformers 5.24 then fails in `_compute_yarn_parameters` and its siblings.
        nested: `rope_parameters` holds one dict a layer type.
        unrotated: config key of a list with 0 for layers without RoPE, and of the interval that stands in for it.
        scaling_types: the RoPE types that the config class admits; None for all.
        legacy_types, legacy_keys: the types, and exactly the keys, that transformers 4.57 admits in `rope_scaling`;
            None for no such limit. A type outside makes 4.57 refuse the whole config, loudly.
        original_length_key: the trained length stands at top level and overrides the dict's (Phi-3).
        default_scaling: the scaling in force when the config is silent (gpt-oss).
        query, query_norm: the tensors that a folded temperature scales; the norm wins where it exists, because it
            cancels any scale of the projection before it.
        layer_prefixes: where layer {i} may stand in the state dict.
        config_path: keys from the config's root to the text model's config.
        layout: how rotated dimensions pair up.
    """

    default_base: float = 10000.0
    base_key: str = "rope_theta"
    local_base_key: str | None = None
    default_local_base: float = 10000.0
    fraction_key: str | None = None
    default_fraction: float = 1.0
    layer_types: str = "full"
    default_window: int | None = None
    default_head_dim: int | None = None
    default_heads: int | None = None
    default_layers: int | None = None
    spell_head_dim: bool = False
    nested: bool = False
    unrotated: tuple[str, str, int] | None = None
    scaling_types: tuple[str, ...] | None = None
    legacy_types: tuple[str, ...] | None = None
    legacy_keys: tuple[str, ...] | None = None
    original_length_key: str | None = None
    default_original_length: int | None = None
    default_max_position_embeddings: int | None = None
    default_scaling: tuple[tuple[str, object], ...] | None = None
    query: QueryTensor = QueryTensor(("self_attn.q_proj.weight", "self_attn.q_proj.bias"))
    query_norm: QueryTensor | None = None
    layer_prefixes: tuple[str, ...] = ("model.layers.{layer}.",)
    config_path: tuple[str, ...] = ()
    layout: str = "half-split"


_HEAD_NORM = QueryTensor(("self_attn.q_norm.weight",), "shared")
_GEMMA3 = {
    "default_base": 1_000_000.0,
    "local_base_key": "rope_local_base_freq",
    "layer_types": "pattern",
    "default_window": 4096,
    "default_head_dim": 256,
    "default_heads": 8,
    "default_layers": 26,
    "nested": True,
    "default_max_position_embeddings": 131072,
    "query_norm": QueryTensor(("self_attn.q_norm.weight",), "shared", offset=1.0),
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(default_max_position_embeddings=2048),
    "mistral": Architecture(layer_types="window", default_window=4096, default_max_position_embeddings=131072),
    "mixtral": Architecture(
        default_base=1_000_000.0,
        layer_types="window",
        spell_head_dim=True,
        default_max_position_embeddings=131072,
    ),
    "qwen2": Architecture(layer_types="from-layer", default_window=4096, default_max_position_embeddings=32768),
    "qwen3": Architecture(
        layer_types="from-layer",
        default_window=4096,
        default_head_dim=128,
        default_max_position_embeddings=32768,
        query_norm=_HEAD_NORM,
    ),
    "phi3": Architecture(
        layer_types="window",
        fraction_key="partial_rotary_factor",
        scaling_types=("default", "longrope"),
        legacy_types=("longrope",),
        legacy_keys=("type", "short_factor", "long_factor"),
        original_length_key="original_max_position_embeddings",
        default_original_length=4096,
        default_max_position_embeddings=4096,
        query=QueryTensor(("self_attn.qkv_proj.weight",)),
    ),
    "gemma2": Architecture(
        layer_types="even", default_window=4096, default_head_dim=256, default_max_position_embeddings=8192
    ),
    "gemma3_text": Architecture(**_GEMMA3),  # type: ignore[arg-type]
    "gemma3": Architecture(
        **_GEMMA3,  # type: ignore[arg-type]
        config_path=("text_config",),
        layer_prefixes=("language_model.model.layers.{layer}.", "model.language_model.layers.{layer}."),
    ),
    "gpt_neox": Architecture(
        base_key="rotary_emb_base",
        fraction_key="rotary_pct",
        default_fraction=0.25,
        default_max_position_embeddings=2048,
        query=QueryTensor(("attention.query_key_value.weight", "attention.query_key_value.bias"), "interleaved-qkv"),
        layer_prefixes=("gpt_neox.layers.{layer}.",),
    ),
    "stablelm": Architecture(
        fraction_key="partial_rotary_factor",
        default_fraction=0.25,
        default_max_position_embeddings=4096,
        query_norm=QueryTensor(("self_attn.q_layernorm.norms.{head}.weight",), "shared", when="qk_layernorm"),
    ),
    "olmo2": Architecture(
        legacy_types=("linear", "dynamic"),
        legacy_keys=("type", "factor"),
        default_max_position_embeddings=2048,
        query_norm=QueryTensor(("self_attn.q_norm.weight",)),
    ),
    "smollm3": Architecture(
        default_base=2_000_000.0,
        unrotated=("no_rope_layers", "no_rope_layer_interval", 4),
        default_max_position_embeddings=32768,
    ),
    "gpt_oss": Architecture(
        default_base=150_000.0,
        layer_types="even",
        default_window=128,
        default_head_dim=64,
        default_max_position_embeddings=131072,
        default_scaling=(
            ("rope_type", "yarn"),
            ("factor", 32.0),
            ("beta_fast", 32.0),
            ("beta_slow", 1.0),
            ("truncate", False),
            ("original_max_position_embeddings", 4096),
        ),
    ),
}


@dataclass(frozen=True)
class MisstatedLength:
    """A family whose `max_position_embeddings` is not the length it was trained at."""

    model_type: str
    claimed: int
    trained: int
    why: str
    window: int | None = None


MISSTATED_LENGTHS = (
    MisstatedLength("qwen3", 40960, 32768, "40960 leaves room for the answer; trained at 32768 (QwenLM/Qwen3#1424)"),
    MisstatedLength(
        "mistral", 32768, 8192, "Mistral-7B-v0.1: windowed over 8192-token sequences (2309.00071)", window=4096
    ),
)
