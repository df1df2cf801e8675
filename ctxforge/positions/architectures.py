"""Models without RoPE, as data: which of them have a table of learned positions, and where it is.

Sources: transformers 5.24 and 4.57, `configuration_*.py` and `modeling_*.py` of each type. ALiBi's rows are in
`alibi_architectures.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ALIBI_ROWS = "ctxforge.positions.alibi_architectures"

ALIBI: Mapping[str, Any] = importlib.import_module(_ALIBI_ROWS).ALIBI if importlib.util.find_spec(_ALIBI_ROWS) else {}
"""ALiBi's rows by model type."""


@dataclass(frozen=True)
class CausalMask:
    """The causal mask that a model's code builds when it loads, as large as the table is long, squared.

    Attributes:
        element_bytes: bytes of one of its L' * L' elements.
        per_layer: each layer has one of its own.
        since_5: transformers 5 still builds it; False where only 4.x does.
    """

    element_bytes: int
    per_layer: bool
    since_5: bool = True


@dataclass(frozen=True)
class LearnedTable:
    """One row: a model type's table of position embeddings.

    Attributes:
        tensors: names that the table has in checkpoints, with and without the prefix of the model with a head.
        length_key, default_length: the config key that counts the positions, and its default.
        same_keys: keys that mean the same where they are present; they may not differ.
        legacy_keys: keys that no current reader takes the table's length from, changed with the others.
        offset: rows before that of position 0.
        layers_key, default_layers, heads_key, default_heads: counts.
        attention_types: config key that says which layers attend to a window only, and that of the window's size.
        default_window: the window where the config is silent.
        mask: what L' costs in memory besides the table.
    """

    tensors: tuple[str, ...]
    length_key: str = "max_position_embeddings"
    default_length: int = 1024
    same_keys: tuple[str, ...] = ()
    legacy_keys: tuple[str, ...] = ()
    offset: int = 0
    layers_key: str = "num_hidden_layers"
    default_layers: int = 12
    heads_key: str = "num_attention_heads"
    default_heads: int = 12
    attention_types: tuple[str, str] | None = None
    default_window: int = 256
    mask: CausalMask | None = None


_WPE = ("transformer.wpe.weight", "wpe.weight")

_GPT2 = LearnedTable(
    tensors=_WPE,
    length_key="n_positions",
    same_keys=("max_position_embeddings",),
    legacy_keys=("n_ctx",),
    layers_key="n_layer",
    heads_key="n_head",
    mask=CausalMask(1, per_layer=True, since_5=False),
)

LEARNED: dict[str, LearnedTable] = {
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "gpt_bigcode": LearnedTable(
        tensors=_WPE,
        length_key="n_positions",
        same_keys=("max_position_embeddings",),
        legacy_keys=("n_ctx",),
        layers_key="n_layer",
        heads_key="n_head",
        mask=CausalMask(1, per_layer=False),
    ),
    "openai-gpt": LearnedTable(
        tensors=("transformer.positions_embed.weight", "positions_embed.weight"),
        length_key="n_positions",
        default_length=512,
        same_keys=("max_position_embeddings",),
        legacy_keys=("n_ctx",),
        layers_key="n_layer",
        heads_key="n_head",
        mask=CausalMask(4, per_layer=True),
    ),
    "gpt_neo": LearnedTable(
        tensors=_WPE,
        default_length=2048,
        layers_key="num_layers",
        default_layers=24,
        heads_key="num_heads",
        default_heads=16,
        attention_types=("attention_types", "window_size"),
        mask=CausalMask(1, per_layer=True),
    ),
    "opt": LearnedTable(
        tensors=("model.decoder.embed_positions.weight", "decoder.embed_positions.weight"),
        default_length=2048,
        offset=2,
    ),
    "biogpt": LearnedTable(
        tensors=("biogpt.embed_positions.weight", "embed_positions.weight"),
        offset=2,
        default_layers=24,
        default_heads=16,
    ),
}
