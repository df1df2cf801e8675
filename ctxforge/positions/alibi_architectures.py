"""Models with ALiBi, as data. Sources: transformers 5.24, `configuration_*.py` and `modeling_*.py` of each type."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AlibiModel:
    """One row: where a model's config keeps what ALiBi needs.

    Attributes:
        class_prefix: of its classes' names in transformers.
        length_keys: keys that state the trained length, first found counts; all present ones are changed, the first
            is written where none is.
        default_length: the length of the published models where the config is silent; None when it can't be told.
        layers_keys, default_layers, heads_keys, default_heads: counts, under each name that readers accept.
        when: config key that must be true for the model to have ALiBi.
        table: key of the part of the config that describes attention.
        required: its entries that must have this value where present, because transformers computes with no other.
    """

    class_prefix: str
    length_keys: tuple[str, ...]
    default_length: int | None
    layers_keys: tuple[str, ...]
    default_layers: int
    heads_keys: tuple[str, ...]
    default_heads: int
    when: str | None = None
    table: str | None = None
    required: tuple[tuple[str, object], ...] = ()


ALIBI: dict[str, AlibiModel] = {
    "bloom": AlibiModel(
        class_prefix="Bloom",
        length_keys=("seq_length",),
        default_length=2048,
        layers_keys=("n_layer", "num_hidden_layers"),
        default_layers=2,
        heads_keys=("n_head", "num_attention_heads"),
        default_heads=8,
    ),
    "mpt": AlibiModel(
        class_prefix="Mpt",
        length_keys=("max_seq_len",),
        default_length=2048,
        layers_keys=("n_layers",),
        default_layers=24,
        heads_keys=("n_heads",),
        default_heads=16,
        table="attn_config",
        required=(
            ("alibi", True),
            ("alibi_bias_max", 8),
            ("attn_type", "multihead_attention"),
            ("prefix_lm", False),
            ("qk_ln", False),
        ),
    ),
    "falcon": AlibiModel(
        class_prefix="Falcon",
        length_keys=("max_position_embeddings",),
        default_length=2048,
        layers_keys=("num_hidden_layers", "n_layer"),
        default_layers=32,
        heads_keys=("num_attention_heads", "n_head"),
        default_heads=71,
        when="alibi",
    ),
}
