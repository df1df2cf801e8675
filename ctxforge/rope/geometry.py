"""Understand: from a config to the RoPE that its model really has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import fields
from ctxforge.rope.architectures import ARCHITECTURES, MISSTATED_LENGTHS, Architecture
from ctxforge.rope.custom_code import base_model_type, find_code
from ctxforge.rope.reader import (
    MAX_LENGTH,
    ORIGINAL_KEY,
    Table,
    dialect_differences,
    head_dim,
    max_positions,
    read_rotations,
    table_differences,
)
from ctxforge.rope.types import CustomCode, RopeGeometry, RopeGroup

_MAX_LAYERS = 4096
_LEGACY_KEYS = ("rope_scaling", "rope_theta", "rotary_emb_base", "rope_local_base_freq")


def find_architecture(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    """The model type of a config and its row in the table.

    Raises:
        CheckpointError: no model_type.
        UnsupportedError: a type that the table does not have.
    """
    model_type = base_model_type(config)
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(
            "config.json has no model_type", "use a checkpoint in the transformers layout, with its config.json"
        )
    if model_type not in ARCHITECTURES:
        import difflib

        near = difflib.get_close_matches(model_type, ARCHITECTURES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UnsupportedError(
            f"model type {model_type!r:.80} is not supported yet{hint}",
            f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    return model_type, ARCHITECTURES[model_type]


def text_config(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The model type, and the part of the config that describes the text model.

    Raises:
        CheckpointError, UnsupportedError: see `find_architecture`; or a wrapper without its text model's config.
    """
    model_type, architecture = find_architecture(config)
    inner: Mapping[str, Any] = config
    for key in architecture.config_path:
        found = fields.table(inner, key)
        if found is None:
            raise CheckpointError(f"config.json of a {model_type} model has no {key}", "repair config.json")
        inner = found
    return model_type, inner


def understand(config: Mapping[str, Any], *, trained_length: int | None = None) -> RopeGeometry:
    """The RoPE geometry of a checkpoint's config.

    Args:
        config: config.json, parsed.
        trained_length: the length that the weights work at now, when the user knows better than the config.

    Raises:
        CheckpointError: a value is missing, malformed or out of range, or the two dialects contradict each other.
        UnsupportedError: a model type, rope type or combination that ctxforge does not understand.
    """
    model_type, inner = text_config(config)
    architecture = ARCHITECTURES[model_type]
    _refuse_contradiction(inner, model_type)
    tables = read_rotations(inner, model_type, "transformers 5")
    layers = fields.integer(inner, "num_hidden_layers", architecture.default_layers, high=_MAX_LAYERS)
    unrotated = _unrotated_layers(inner, architecture, layers)
    window = _window(inner, architecture)
    windowed = _windowed_layers(inner, architecture, layers, unrotated, window)
    code = find_code(config)
    groups = tuple(_group(layer_type, table, layers, unrotated, windowed, code) for layer_type, table in tables.items())
    length = _lengths(inner, model_type, tables, trained_length)
    return RopeGeometry(
        model_type=model_type,
        config_path=architecture.config_path,
        head_dim=head_dim(inner, architecture),
        heads=fields.integer(inner, "num_attention_heads", architecture.default_heads, high=2**16),
        layers=layers,
        groups=tuple(group for group in groups if group.layers),
        unrotated_layers=unrotated,
        window=window if windowed else None,
        max_position_embeddings=max_positions(inner, architecture),
        original_length=length.original,
        trained_length=length.trained,
        evidence=length.evidence,
    )


def _refuse_contradiction(config: Mapping[str, Any], model_type: str) -> None:
    """Both key styles present and saying different things: no reading of such a file is safe."""
    has_modern = fields.table(config, "rope_parameters") is not None
    has_legacy = any(config.get(key) is not None for key in _LEGACY_KEYS)
    if not (has_modern and has_legacy):
        return
    modern_only = {key: value for key, value in config.items() if key not in _LEGACY_KEYS}
    differences = table_differences(
        read_rotations(modern_only, model_type, "transformers 5"),
        read_rotations(config, model_type, "transformers 5"),
        ("rope_parameters", "rope_scaling"),
    ) or dialect_differences(config, model_type)
    if differences:
        raise CheckpointError(
            f"config.json contradicts itself: {differences[0]}",
            "make rope_parameters agree with rope_theta and rope_scaling, or remove the wrong ones",
        )


def _group(
    layer_type: str | None,
    table: Table,
    layers: int,
    unrotated: tuple[int, ...],
    windowed: frozenset[int],
    code: CustomCode | None,
) -> RopeGroup:
    members = [
        i
        for i in range(layers)
        if i not in unrotated and (layer_type is None or (i in windowed) == (layer_type == "sliding_attention"))
    ]
    narrow = tuple(i for i in members if i in windowed)
    only_windows = layer_type is not None and len(narrow) == len(members)
    return RopeGroup(
        layer_type=layer_type,
        layers=tuple(members),
        windowed_layers=narrow,
        rotated_dims=table.rotated_dims,
        base=table.base,
        in_force=table.rotation if code is None else replace(table.rotation, code=code),
        extendable=not only_windows,
    )


def _unrotated_layers(config: Mapping[str, Any], architecture: Architecture, layers: int) -> tuple[int, ...]:
    if architecture.unrotated is None:
        return ()
    list_key, interval_key, default_interval = architecture.unrotated
    marks = config.get(list_key)
    if marks is None:
        interval = fields.integer(config, interval_key, default_interval, high=2**20)
        return tuple(i for i in range(layers) if (i + 1) % interval == 0)
    if not isinstance(marks, list) or len(marks) != layers or not all(mark in (0, 1) for mark in marks):
        raise CheckpointError(f"config.json: {list_key} must hold {layers} zeros and ones", "repair config.json")
    return tuple(i for i, mark in enumerate(marks) if not mark)


def _window(config: Mapping[str, Any], architecture: Architecture) -> int | None:
    if "sliding_window" in config and config["sliding_window"] is None:
        return None
    if architecture.layer_types in ("full", "from-layer") and not fields.flag(config, "use_sliding_window", False):
        return None
    if config.get("sliding_window") is None and architecture.default_window is None:
        return None
    return fields.integer(config, "sliding_window", architecture.default_window, high=MAX_LENGTH)


def _windowed_layers(
    config: Mapping[str, Any],
    architecture: Architecture,
    layers: int,
    unrotated: tuple[int, ...],
    window: int | None,
) -> frozenset[int]:
    named = config.get("layer_types")
    if named is not None:
        if not isinstance(named, list) or len(named) != layers or not all(isinstance(name, str) for name in named):
            raise CheckpointError(f"config.json: layer_types must hold {layers} names", "repair config.json")
        return frozenset(i for i, name in enumerate(named) if name == "sliding_attention")
    if window is None:
        return frozenset()
    everyone = range(layers)
    if architecture.layer_types == "window":
        return frozenset(everyone)
    if architecture.layer_types == "even":
        return frozenset(i for i in everyone if i % 2 == 0)
    if architecture.layer_types == "pattern":
        pattern = fields.integer(config, "sliding_window_pattern", 6, high=_MAX_LAYERS)
        return frozenset(i for i in everyone if (i + 1) % pattern)
    if architecture.layer_types == "from-layer":
        first = fields.integer(config, "max_window_layers", 28, high=2**31, low=0)
        return frozenset(i for i in everyone if i >= first)
    return frozenset(unrotated)


@dataclass(frozen=True)
class _Lengths:
    original: int | None
    trained: int | None
    evidence: str


def _lengths(
    config: Mapping[str, Any],
    model_type: str,
    tables: Mapping[str | None, Table],
    stated: int | None,
) -> _Lengths:
    """L0 of the plain frequencies and the length that the weights work at, with the reason."""
    longest = max_positions(config, ARCHITECTURES[model_type])
    table = tables[None] if None in tables else tables["full_attention"]
    rotation = table.rotation
    original = table.original_length
    if rotation.form is not None and rotation.form.type == "dynamic":
        found = _Lengths(
            longest, longest, "max_position_embeddings, which dynamic scaling leaves at the trained length"
        )
    elif rotation.is_plain and not rotation.length_dependent:
        found = _plain_length(config, model_type, longest)
    elif original is None:
        found = _Lengths(
            None,
            None,
            f"not decidable: a linear scaling is in force and nothing says whether max_position_embeddings={longest}"
            " counts it",
        )
    else:
        reached = _reached(table, original, longest)
        found = _Lengths(original, reached, f"{ORIGINAL_KEY}={original} and the scaling in force on it")
    if stated is None:
        return found
    return _Lengths(found.original, stated, "given by the user as the trained length")


def _plain_length(config: Mapping[str, Any], model_type: str, longest: int) -> _Lengths:
    for entry in MISSTATED_LENGTHS:
        window = config.get("sliding_window")
        if (entry.model_type, entry.claimed) == (model_type, longest) and entry.window in (None, window):
            return _Lengths(entry.trained, entry.trained, f"known model family: {entry.why}")
    return _Lengths(longest, longest, "max_position_embeddings, with no scaling in force")


def _reached(table: Table, original: int, longest: int) -> int:
    """The extended length: max_position_embeddings when it was raised, else factor times the original length."""
    if longest > original:
        return longest
    factor = max(table.rotation.divisors)
    return max(original, round(original * factor))
