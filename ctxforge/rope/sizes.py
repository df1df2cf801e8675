"""Sizes and layer types of a text model's config, under whatever names its architecture has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import fields
from ctxforge.rope.architectures import Architecture

MAX_LENGTH = 2**40
MAX_HEAD_DIM = 2**16
MAX_LAYERS = 4096
_WINDOWED = ("sliding_attention", "chunked_attention", "hybrid_sliding")
_WITHOUT_ATTENTION = ("linear_attention", "conv", "recurrent", "mamba", "moe", "mlp")
_ALIASES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
}


def canonical(config: Mapping[str, Any], architecture: Architecture) -> Mapping[str, Any]:
    """`config` with this architecture's own names of sizes under the usual ones too."""
    named = {usual: config[own] for usual, own in architecture.keys if config.get(own) is not None}
    return {**config, **named} if named else config


def head_dim(config: Mapping[str, Any], architecture: Architecture) -> int:
    """Dimensions of a query head, rotated or not."""
    if architecture.rotated_key is not None:
        unrotated = fields.integer(
            config, architecture.unrotated_key, architecture.default_unrotated, high=MAX_HEAD_DIM, low=0
        )
        return unrotated + latent_rotated(config, architecture)
    return full_head_dim(config, architecture)


def latent_rotated(config: Mapping[str, Any], architecture: Architecture) -> int:
    """The rotated slice of a head, where the config gives its size."""
    assert architecture.rotated_key is not None
    return fields.integer(config, architecture.rotated_key, architecture.default_rotated, high=MAX_HEAD_DIM)


def full_head_dim(config: Mapping[str, Any], architecture: Architecture) -> int:
    """`head_dim`, else the type's own default, else hidden_size / num_attention_heads."""
    if config.get("head_dim") is not None and not architecture.head_dim_ignored:
        return fields.integer(config, "head_dim", None, high=MAX_HEAD_DIM)
    if architecture.default_head_dim is not None:
        return architecture.default_head_dim
    hidden = fields.integer(config, "hidden_size", architecture.default_hidden, high=2**24)
    heads = query_heads(config, architecture)
    if hidden < heads:
        raise CheckpointError(
            f"config.json: hidden_size {hidden} is smaller than num_attention_heads {heads}", "repair config.json"
        )
    return architecture.head_dim_factor * hidden // heads


def query_heads(config: Mapping[str, Any], architecture: Architecture) -> int:
    """Count of query heads."""
    return fields.integer(config, "num_attention_heads", architecture.default_heads, high=2**16)


def max_positions(config: Mapping[str, Any], architecture: Architecture) -> int:
    """`max_position_embeddings`, or the type's default."""
    default = architecture.default_max_position_embeddings
    return fields.integer(canonical(config, architecture), "max_position_embeddings", default, high=MAX_LENGTH)


def layer_count(config: Mapping[str, Any], architecture: Architecture) -> int:
    """Count of decoder layers."""
    if architecture.layer_multiple > 1 and config.get(architecture.key("num_hidden_layers")) is None:
        return fields.integer(config, "num_hidden_layers", architecture.default_layers, high=MAX_LAYERS)
    counted = fields.integer(config, "num_hidden_layers", architecture.default_layers, high=MAX_LAYERS)
    named = config.get(architecture.layers.list_key)
    if architecture.layers.with_mlp and isinstance(named, list) and "mlp" in named:
        return counted // 2
    return counted * architecture.layer_multiple


def window_size(config: Mapping[str, Any], architecture: Architecture) -> int | None:
    """The sliding window in tokens; None when the config uses none."""
    key = architecture.window_key
    if key in config and not config[key]:
        return None
    if architecture.window_flag is not None and not fields.flag(config, architecture.window_flag, False):
        return None
    if config.get(key) is None and architecture.default_window is None:
        return None
    return fields.integer(config, key, architecture.default_window, high=MAX_LENGTH) // architecture.window_divisor


def layer_kinds(config: Mapping[str, Any], architecture: Architecture, layers: int) -> tuple[str, ...]:
    """The type of each layer, as the config lists them or as the architecture deals them out.

    Raises:
        CheckpointError: the list has another length or holds something else, or is missing where it must not.
    """
    row = architecture.layers
    named = config.get(row.list_key)
    if named is None and row.list_key != "layer_types":
        named = config.get("layer_types")
    if named is None:
        return _dealt(config, architecture, layers)
    if isinstance(named, list) and row.with_mlp and "mlp" in named:
        named = named[::2]
    if not isinstance(named, list) or len(named) != layers or not all(isinstance(name, str) for name in named):
        raise CheckpointError(f"config.json: {row.list_key} must hold {layers} names", "repair config.json")
    aliases = _ALIASES | dict(row.aliases)
    return tuple(aliases.get(str(name), str(name)) for name in named)


def _dealt(config: Mapping[str, Any], architecture: Architecture, layers: int) -> tuple[str, ...]:
    row = architecture.layers
    first, second = row.kinds[0], row.kinds[min(1, len(row.kinds) - 1)]
    window = window_size(config, architecture)
    period = row.period
    if row.key is not None and row.rule != "indices":
        period = fields.integer(config, row.key, row.period, high=2**31, low=0)
    if row.rule == "listed":
        raise CheckpointError(f"config.json has no {row.list_key}", "repair config.json")
    if row.rule == "every":
        found = [second if period and (i + 1) % period == 0 else first for i in range(layers)]
    elif row.rule == "first-of":
        found = [second if period and i % period == 0 else first for i in range(layers)]
    elif row.rule == "cycle":
        found = [row.kinds[i % len(row.kinds)] for i in range(layers)]
    elif row.rule == "indices":
        chosen = _indices(config, row.key or "", tuple(range(layers)) if row.kinds[0] == "conv" else ())
        found = [second if i in chosen else first for i in range(layers)]
    elif row.rule == "from-layer":
        found = [second if window is not None and i >= period else first for i in range(layers)]
    elif row.rule == "before-layer":
        found = [second if window is not None and i < period and (i + 1) % 2 else first for i in range(layers)]
    elif row.rule == "marked":
        marked = _marked(config, architecture, layers)
        found = [second if i in marked else first for i in range(layers)]
    elif row.rule == "window":
        found = [second if window is not None else first] * layers
    else:
        found = [first] * layers
    found[: len(row.first)] = row.first[:layers]
    if row.full_last and layers:
        found[-1] = "full_attention"
    return tuple(found)


def _indices(config: Mapping[str, Any], key: str, default: tuple[int, ...]) -> frozenset[int]:
    value = config.get(key)
    if value is None:
        return frozenset(default)
    if not isinstance(value, list) or not all(isinstance(entry, int) for entry in value):
        raise CheckpointError(f"config.json: {key} must be a list of layers", "repair config.json")
    return frozenset(value)


def attends(kind: str) -> bool:
    """True for layer types with softmax attention in them."""
    return kind not in _WITHOUT_ATTENTION


def is_windowed(kind: str, window: int | None) -> bool:
    """True for a layer type that sees only a window, when the config has one."""
    return kind in _WINDOWED and window is not None


def unrotated_layers(config: Mapping[str, Any], architecture: Architecture, kinds: tuple[str, ...]) -> tuple[int, ...]:
    """The layers without RoPE: those that don't attend, those of a type that doesn't rotate, those marked.

    Raises:
        CheckpointError: a mark list of the wrong length or content.
    """
    window = window_size(config, architecture)
    marked = _marked(config, architecture, len(kinds))
    rotating = architecture.rotating
    if architecture.rotating_without_window and window is None:
        rotating = None
    forced = _forced(config, architecture, len(kinds))
    return tuple(
        i
        for i, kind in enumerate(kinds)
        if i in marked
        or not attends(kind)
        or (rotating is not None and i not in forced and not (kind in rotating and window is not None))
    )


def _forced(config: Mapping[str, Any], architecture: Architecture, layers: int) -> frozenset[int]:
    if architecture.rotating_marks is None or config.get("prefix_dense_sliding_window_pattern") not in (None, 1):
        return frozenset()
    key, value = architecture.rotating_marks
    marks = config.get(key)
    if marks is None:
        return frozenset(range(fields.integer(config, "first_k_dense_replace", 0, high=MAX_LAYERS, low=0)))
    if not isinstance(marks, list) or len(marks) != layers:
        raise CheckpointError(f"config.json: {key} must hold {layers} names", "repair config.json")
    return frozenset(i for i, mark in enumerate(marks) if mark == value)


def _marked(config: Mapping[str, Any], architecture: Architecture, layers: int) -> frozenset[int]:
    if architecture.unrotated_indices is not None:
        key, default = architecture.unrotated_indices
        return _indices(config, key, default)
    if architecture.layer_bases_key is not None:
        return frozenset(i for i, base in enumerate(layer_bases(config, architecture, layers)) if not base)
    if architecture.unrotated is None:
        return frozenset()
    list_key, interval_key, default_interval = architecture.unrotated
    marks = config.get(list_key)
    if not marks:
        interval = fields.integer(config, interval_key, default_interval, high=2**20)
        return frozenset(i for i in range(layers) if (i + 1) % interval == 0)
    if not isinstance(marks, list) or len(marks) != layers or not all(mark in (0, 1) for mark in marks):
        raise CheckpointError(f"config.json: {list_key} must hold {layers} zeros and ones", "repair config.json")
    return frozenset(i for i, mark in enumerate(marks) if not mark)


def layer_bases(config: Mapping[str, Any], architecture: Architecture, layers: int | None) -> tuple[float, ...]:
    """The list of one base a layer, 0 for layers without RoPE; empty when the config has none.

    Raises:
        CheckpointError: a wrong length or content.
        UnsupportedError: layers with different bases.
    """
    assert architecture.layer_bases_key is not None
    value = config.get(architecture.layer_bases_key)
    if value is None:
        return ()
    numeric = isinstance(value, list) and all(isinstance(b, int | float) and not isinstance(b, bool) for b in value)
    if not numeric or (layers is not None and len(value) != layers):
        raise CheckpointError(f"config.json: {architecture.layer_bases_key} must hold a number a layer", "repair it")
    if len({base for base in value if base}) > 1:
        raise UnsupportedError(
            f"config.json: {architecture.layer_bases_key} gives layers different bases, which no one rope dict scales",
            "convert a model with one base",
        )
    return tuple(float(base) for base in value)


def first_rotated(architecture: Architecture, rotated_dims: int, dims: int) -> int:
    """Where the rotated dimensions start within a head of `dims`."""
    if architecture.rotated_key is not None or architecture.rotates_tail:
        return dims - rotated_dims
    return 0
