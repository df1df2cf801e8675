"""Understand: from a config to the RoPE that its model really has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import fields
from ctxforge.rope.architectures import ARCHITECTURES, MISSTATED_LENGTHS, REFUSED, Architecture
from ctxforge.rope.custom_code import base_model_type, find_code
from ctxforge.rope.reader import dialect_differences, read_rotations, table_differences
from ctxforge.rope.sizes import (
    attends,
    canonical,
    first_rotated,
    head_dim,
    is_windowed,
    layer_count,
    layer_kinds,
    max_positions,
    query_heads,
    unrotated_layers,
    window_size,
)
from ctxforge.rope.table import ORIGINAL_KEY, Place, Table, rope_type, table_head_dim
from ctxforge.rope.types import UNROTATED, CustomCode, RopeGeometry, RopeGroup

_LEGACY_KEYS = ("rope_scaling", "rope_theta", "rotary_emb_base", "rope_local_base_freq")


def find_architecture(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    """The model type of a config and its row in the table.

    Raises:
        CheckpointError: no model_type.
        UnsupportedError: a type that the table refuses, with its reason, or does not have.
    """
    model_type = base_model_type(config)
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(
            "config.json has no model_type", "use a checkpoint in the transformers layout, with its config.json"
        )
    if model_type in REFUSED:
        raise UnsupportedError(
            f"model type {model_type!r} is not supported: {REFUSED[model_type]}",
            "docs/architectures.md lists the types that can be converted",
        )
    if model_type not in ARCHITECTURES:
        import difflib

        near = difflib.get_close_matches(model_type, ARCHITECTURES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UnsupportedError(
            f"model type {model_type!r:.80} is not supported yet{hint}",
            "docs/architectures.md lists the types that can be converted",
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
    model_type, written = text_config(config)
    architecture = ARCHITECTURES[model_type]
    inner = canonical(written, architecture)
    tables = read_rotations(inner, model_type, "transformers 5")
    _refuse_contradiction(written, model_type)
    layers = layer_count(inner, architecture)
    kinds = layer_kinds(inner, architecture, layers)
    still = unrotated_layers(inner, architecture, kinds)
    window = window_size(inner, architecture)
    windowed = frozenset(i for i, kind in enumerate(kinds) if is_windowed(kind, window))
    found = [_group(label, table, inner, architecture, kinds, still, windowed) for label, table in tables.items()]
    code = find_code(config)
    groups = tuple(_with_code(group, code) for group in found if group.layers)
    if not groups:
        raise UnsupportedError(
            f"no layer of this {model_type} model has RoPE", "there is no rotation to rescale; check layer_types"
        )
    rotated = {layer for group in groups for layer in group.layers}
    length = _lengths(inner, model_type, tables, groups, trained_length)
    reason = _nothing_to_extend(kinds, rotated, windowed)
    if reason is None and not any(group.extendable for group in groups):
        reason = "every layer attends to a window only, with a rotary table of its own: nothing to extend"
    if reason is not None:
        groups = tuple(_not_extendable(group) for group in groups)
    return RopeGeometry(
        model_type=model_type,
        config_path=architecture.config_path,
        head_dim=head_dim(inner, architecture),
        heads=query_heads(inner, architecture),
        layers=layers,
        groups=groups,
        unrotated_layers=tuple(i for i in range(layers) if i not in rotated),
        window=window if windowed else None,
        max_position_embeddings=max_positions(inner, architecture),
        original_length=length.original,
        trained_length=length.trained,
        evidence=length.evidence,
        nothing_to_extend=reason,
        layer_heads=_heads_by_layer(inner, architecture, layers),
        pairing=_pairing(inner, architecture),
        notes=_notes(architecture, tables),
    )


def _nothing_to_extend(kinds: tuple[str, ...], rotated: set[int], windowed: frozenset[int]) -> str | None:
    """Why rescaling would do nothing: RoPE stands in windowed layers alone, and others that see farther have none."""
    if not rotated <= windowed:
        return None
    far = [i for i, kind in enumerate(kinds) if i not in rotated and i not in windowed and attends(kind)]
    return "the layers that see beyond the window have no RoPE: nothing to extend" if far else None


def _with_code(group: RopeGroup, code: CustomCode | None) -> RopeGroup:
    if code is None:
        return group
    return dataclasses.replace(group, in_force=dataclasses.replace(group.in_force, code=code))


def _not_extendable(group: RopeGroup) -> RopeGroup:
    return dataclasses.replace(group, extendable=False)


def _pairing(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    if architecture.layout_key is None:
        return None
    return "interleaved" if fields.flag(config, architecture.layout_key, True) else "half-split"


def _heads_by_layer(config: Mapping[str, Any], architecture: Architecture, layers: int) -> tuple[int, ...] | None:
    if architecture.heads_by_layer_key is None:
        return None
    value = config.get(architecture.heads_by_layer_key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != layers or not all(isinstance(n, int) and n > 0 for n in value):
        raise CheckpointError(
            f"config.json: {architecture.heads_by_layer_key} must hold {layers} counts", "repair config.json"
        )
    return tuple(value)


def _notes(architecture: Architecture, tables: Mapping[str | None, Table]) -> tuple[str, ...]:
    """What the plan's reader must know about this architecture, one line each."""
    lines = list(architecture.notes)
    if architecture.query_temperature is not None:
        kept = (
            f"; {ORIGINAL_KEY}, which it follows, is kept where the rope type allows"
            if architecture.keeps_original_length
            else ""
        )
        lines.append(f"queries are scaled by position besides ({architecture.query_temperature}){kept}")
    scale = max(table.softmax_scale for table in tables.values())
    if scale != 1.0:
        lines.append(
            f"the attention multiplies its softmax scale by {scale:.6g} (mscale_all_dim): a scaling that is composed"
            " keeps that factor, one that restarts drops it"
        )
    if architecture.norm_after_rotation:
        lines.append("q and k are normalised after the rotation, so a temperature on cos and sin has no effect here")
    if architecture.indexer:
        lines.append(
            "the sparse-attention indexer turns by the same table; a folded temperature does not reach its scores"
        )
    return tuple(lines)


def _refuse_contradiction(config: Mapping[str, Any], model_type: str) -> None:
    """Both key styles present and saying different things, or neither saying what the two majors assume apart."""
    architecture = ARCHITECTURES[model_type]
    _refuse_assumed_base(config, architecture)
    has_modern = fields.table(config, "rope_parameters") is not None
    has_legacy = any(config.get(key) is not None for key in _LEGACY_KEYS)
    if not (has_modern and has_legacy) or not architecture.legacy_scaling:
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


def _refuse_assumed_base(config: Mapping[str, Any], architecture: Architecture) -> None:
    """A base that the config leaves to the reader, where transformers 5 and 4 assume different ones."""
    modern = fields.table(config, "rope_parameters") or {}
    dicts = [modern, *(value for value in modern.values() if isinstance(value, Mapping))]
    scaling = fields.table(config, "rope_scaling") or {}
    if config.get(architecture.base_key) is not None or any("rope_theta" in own for own in (*dicts, scaling)):
        return
    five, four = architecture.default_base, architecture.legacy_default_base
    if architecture.legacy_base_path:
        outer, inner = architecture.legacy_base_path
        four = fields.real(fields.table(config, outer) or {}, inner, five, low=1.0)
    if four is not None and four != five:
        raise CheckpointError(
            f"config.json names no {architecture.base_key}: transformers 5 assumes {five:g}, transformers 4 {four:g}",
            f"write {architecture.base_key} as the model was trained",
        )


def _group(
    label: str | None,
    table: Table,
    config: Mapping[str, Any],
    architecture: Architecture,
    kinds: tuple[str, ...],
    still: tuple[int, ...],
    windowed: frozenset[int],
) -> RopeGroup:
    row = next((row for row in architecture.tables if row.label == label), None)
    members = tuple(i for i, kind in enumerate(kinds) if i not in still and (row is None or kind in row.layer_kinds))
    narrow = tuple(i for i in members if i in windowed)
    dims = head_dim(config, architecture)
    if row is not None and architecture.rotated_key is None:
        dims = table_head_dim(Place(config, architecture, "transformers 5", row))
    return RopeGroup(
        layer_type=label,
        layers=members,
        windowed_layers=narrow,
        rotated_dims=table.rotated_dims,
        base=table.base,
        in_force=table.rotation,
        extendable=row is None or len(narrow) < len(members),
        head_dim=dims,
        first_rotated=first_rotated(architecture, table.rotated_dims, dims),
        softmax_scale=table.softmax_scale,
    )


@dataclass(frozen=True)
class _Lengths:
    original: int | None
    trained: int | None
    evidence: str


def _lengths(
    config: Mapping[str, Any],
    model_type: str,
    tables: Mapping[str | None, Table],
    groups: tuple[RopeGroup, ...],
    stated: int | None,
) -> _Lengths:
    """L0 of the plain frequencies and the length that the weights work at, with the reason."""
    longest = max_positions(config, ARCHITECTURES[model_type])
    main = next((group for group in groups if group.extendable), groups[0])
    table = tables[main.layer_type]
    rotation = table.rotation
    original = table.original_length
    if rotation.form is not None and rotation.form.type == "dynamic":
        found = _Lengths(
            longest, longest, "max_position_embeddings, which dynamic scaling leaves at the trained length"
        )
    elif not table.scaled:
        found = _plain_length(config, model_type, longest)
    elif _has_alpha(config, model_type):
        found = _Lengths(longest, longest, "max_position_embeddings, with a fixed change of base (alpha) in force")
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
    """The extended length: max_position_embeddings when it was raised, else factor times the original length.

    Of a yarn dict the factor counts in any case: published configs set it and leave max_position_embeddings at, or a
    little above, the original length (QwenLM/Qwen3#1424).
    """
    form = table.rotation.form
    if form is not None and form.type == "yarn":
        factor = form.parameters["factor"]
        assert isinstance(factor, float | int)
        return max(longest, round(original * factor))
    if longest > original:
        return longest
    factor = max(divisor for divisor in table.rotation.divisors if divisor != UNROTATED)
    return max(original, round(original * factor))


def _has_alpha(config: Mapping[str, Any], model_type: str) -> bool:
    architecture = ARCHITECTURES[model_type]
    chosen = fields.table(config, "rope_scaling") or fields.table(config, "rope_parameters") or {}
    return architecture.alpha and rope_type(chosen, architecture) == "dynamic" and bool(chosen.get("alpha"))
