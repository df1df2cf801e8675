"""An independent reader of rotary scaling: config.json -> the rotation that transformers would compute.

Written apart from the methods on purpose, formula by formula after transformers 5.24 and 4.57
(`modeling_rope_utils.py`): it understands sources, and after lowering it recomputes what was emitted, so that a slip
in a method or in the lowering shows as a difference between two derivations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import fields
from ctxforge.rope.architectures import ARCHITECTURES, Architecture, TableRow
from ctxforge.rope.sizes import MAX_LENGTH, canonical, head_dim, layer_bases, max_positions
from ctxforge.rope.table import KNOWN_TYPES, ORIGINAL_KEY, Place, Table, close, read_table, rope_type
from ctxforge.rope.types import UNROTATED

__all__ = [
    "DIALECTS",
    "KNOWN_TYPES",
    "MAX_LENGTH",
    "ORIGINAL_KEY",
    "Table",
    "dialect_differences",
    "head_dim",
    "legacy_note",
    "legacy_refusal",
    "max_positions",
    "read_rotations",
    "table_differences",
]

DIALECTS = ("transformers 5", "transformers 4")


def read_rotations(config: Mapping[str, Any], model_type: str, dialect: str) -> dict[str | None, Table]:
    """Each rotary table of a text model's config as `dialect` reads it; key None for a flat config.

    Args:
        config: the text model's config.
        model_type: a key of `ARCHITECTURES`.
        dialect: "transformers 5" (rope_parameters, overridden by rope_scaling) or "transformers 4" (rope_theta and
            rope_scaling only; rope_parameters is ignored).

    Raises:
        CheckpointError: a value is missing or malformed.
        UnsupportedError: a rope type that transformers does not have, or that this architecture refuses; a config that
            switches RoPE off.
    """
    architecture = ARCHITECTURES[model_type]
    config = canonical(config, architecture)
    refuse_without_rope(config, architecture)
    legacy = fields.table(config, "rope_scaling")
    modern = fields.table(config, "rope_parameters") if dialect == "transformers 5" else None
    if architecture.nested:
        return _read_nested(config, architecture, modern, legacy, dialect)
    # 5.x fills in the default whenever it finds no dict; 4.x only when the key is absent altogether.
    silent = modern is None and legacy is None and (dialect == "transformers 5" or "rope_scaling" not in config)
    if silent and architecture.default_scaling is not None:
        legacy = dict(architecture.default_scaling)
    chosen = dict(legacy or modern or {})
    if chosen and all(isinstance(value, Mapping) for value in chosen.values()):
        raise UnsupportedError(
            f"config.json nests RoPE by layer type, which {model_type} does not read", "use one flat rope dict"
        )
    return {
        None: read_table(Place(config, architecture, dialect), chosen, _base(config, architecture, chosen, dialect))
    }


def refuse_without_rope(config: Mapping[str, Any], architecture: Architecture) -> None:
    """Raise for a config that switches this architecture's RoPE off.

    Raises:
        UnsupportedError: it does.
    """
    if architecture.requires is not None:
        key, default, wanted, reason = architecture.requires
        if config.get(key, default) != wanted:
            raise UnsupportedError(
                f"config.json: {key} is {config.get(key, default)!r:.40}: {reason}", "there is no rotation to rescale"
            )
    modern = config.get("rope_parameters")
    if isinstance(modern, Mapping) and "rope_theta" in modern and modern["rope_theta"] is None:
        raise UnsupportedError(
            "config.json: rope_theta is null: this model has no positions", "there is no rotation to rescale"
        )


def _base(config: Mapping[str, Any], architecture: Architecture, chosen: Mapping[str, Any], dialect: str) -> float:
    modern = dialect == "transformers 5"
    if architecture.layer_bases_key is not None:
        named = [base for base in layer_bases(config, architecture, None) if base]
        if named:
            return named[0]
    if not modern and architecture.legacy_base_path:
        outer, inner = architecture.legacy_base_path
        return fields.real(fields.table(config, outer) or {}, inner, architecture.default_base, low=1.0)
    default = architecture.default_base
    if not modern and architecture.legacy_default_base is not None:
        default = architecture.legacy_default_base
    base = fields.real(config, architecture.base_key, default, low=1.0)
    return fields.real(chosen, "rope_theta", base, low=1.0) if modern else base


def _read_nested(
    config: Mapping[str, Any],
    architecture: Architecture,
    modern: Mapping[str, Any] | None,
    legacy: Mapping[str, Any] | None,
    dialect: str,
) -> dict[str | None, Table]:
    """One table a layer type. A legacy rope_scaling is merged over the dicts that take it."""
    labels = [row.label for row in architecture.tables]
    flat = modern is not None and not any(label in modern for label in labels)
    if flat and not any(row.takes_scaling for row in architecture.tables):
        raise UnsupportedError(
            "config.json holds one flat rope dict, where this architecture reads one a layer type",
            f"nest rope_parameters by {', '.join(labels)}",
        )
    tables: dict[str | None, Table] = {}
    for row in architecture.tables:
        chosen = _chosen(architecture, row, modern, legacy, flat)
        if chosen is None:
            continue
        place = Place(config, architecture, dialect, row)
        tables[row.label] = read_table(place, chosen, _nested_base(config, architecture, row, chosen, dialect))
    if not tables:
        raise CheckpointError("config.json holds no rope dict for any layer type", "repair config.json")
    if architecture.legacy_single_base and dialect == "transformers 4":
        _refuse_two_bases(config, architecture)
    return tables


def _chosen(
    architecture: Architecture,
    row: TableRow,
    modern: Mapping[str, Any] | None,
    legacy: Mapping[str, Any] | None,
    flat: bool,
) -> dict[str, Any] | None:
    """The dict that one table is read from; None where its layers have no RoPE."""
    if modern is None or flat:
        if row.default is None:
            return None
        defaults = {key: value for key, value in row.default.items() if key != "rope_theta"}
        chosen = {**defaults, **(dict(modern or {}) if flat and row.takes_scaling else {})}
    else:
        own = modern.get(row.label)
        # Gemma's classes fill in a missing dict; the others leave those layers without RoPE.
        if own is None and not any(other.takes_scaling for other in architecture.tables):
            return None
        chosen = dict(fields.table(modern, row.label) or {})
    if legacy is not None and row.takes_scaling:
        chosen.update(legacy)
    if flat:
        chosen.pop("rope_theta", None)
    return chosen


def _nested_base(
    config: Mapping[str, Any], architecture: Architecture, row: TableRow, chosen: Mapping[str, Any], dialect: str
) -> float:
    default = float((row.default or {}).get("rope_theta", architecture.default_base))
    single = architecture.legacy_single_base and dialect == "transformers 4"
    if single:
        default = architecture.legacy_default_base or default
    key = "rope_theta" if single else row.base_key
    base = default if key is None else fields.real(config, key, default, low=1.0)
    return fields.real(chosen, "rope_theta", base, low=1.0) if dialect == "transformers 5" else base


def _refuse_two_bases(config: Mapping[str, Any], architecture: Architecture) -> None:
    modern = fields.table(config, "rope_parameters") or {}
    bases = {
        own["rope_theta"]
        for row in architecture.tables
        if isinstance(own := modern.get(row.label), Mapping) and own.get("rope_theta") is not None
    }
    if len(bases) > 1:
        raise UnsupportedError(
            "transformers 4.57 reads one base for all layer types of this architecture, and the config has several",
            "load the checkpoint with transformers 5",
        )


def legacy_refusal(config: Mapping[str, Any], model_type: str) -> str | None:
    """The rope type with which transformers 4.57 refuses, or does not scale, a text model; None when it reads it."""
    architecture = ARCHITECTURES[model_type]
    legacy = fields.table(config, "rope_scaling")
    kind = "default" if legacy is None else rope_type(legacy, architecture)
    if architecture.legacy != "reads":
        modern = fields.table(config, "rope_parameters") or {}
        dicts = [modern.get(row.label) for row in architecture.tables] or [modern]
        named = [rope_type(own, architecture) for own in dicts if isinstance(own, Mapping)]
        return next((name for name in (*named, kind) if name != "default"), "default")
    if kind == "proportional" or _modern_only(config, architecture):
        return "proportional"
    admitted = architecture.legacy_types
    if admitted is None or legacy is None:
        return None
    if architecture.alpha and kind == "dynamic" and legacy.get("alpha"):
        return None
    return None if kind in admitted else kind


def _modern_only(config: Mapping[str, Any], architecture: Architecture) -> bool:
    modern = fields.table(config, "rope_parameters")
    if modern is None or fields.table(config, "rope_scaling") is not None:
        return False
    return not architecture.nested and rope_type(modern, architecture) == "proportional"


def legacy_note(config: Mapping[str, Any], model_type: str) -> str | None:
    """What transformers 4.57 makes of a text model's config that it does not read alike, in one line."""
    refused = legacy_refusal(config, model_type)
    if refused is None:
        return None
    architecture = ARCHITECTURES[model_type]
    if architecture.legacy == "absent":
        return f"transformers 4.57 has no model type {model_type}: load with 5.x"
    if architecture.legacy == "other":
        return f"don't load {model_type} with transformers 4.57: {architecture.legacy_reason}; load with 5.x"
    return f"transformers 4.x refuses the rope type {refused} for {model_type}: load with 5.x"


def dialect_differences(config: Mapping[str, Any], model_type: str) -> list[str]:
    """How the two dialects of one text model's config differ, one line each; empty when they agree to 1e-6.

    A dialect that can't be read at all is a difference too; one that refuses loudly (`legacy_refusal`) is not.
    """
    if legacy_refusal(config, model_type) is not None:
        return []
    readings: list[dict[str | None, Table]] = []
    for dialect in DIALECTS:
        try:
            readings.append(read_rotations(config, model_type, dialect))
        except (CheckpointError, UnsupportedError) as error:
            return [f"{dialect} can't read it: {error.cause}"]
    return table_differences(readings[0], readings[1], DIALECTS)


def table_differences(
    first: Mapping[str | None, Table], second: Mapping[str | None, Table], names: tuple[str, str]
) -> list[str]:
    """How two readings of the same tables differ, one line each; empty when they agree to 1e-6 relative."""
    lines = []
    for layer_type, one in first.items():
        where = f" of {layer_type}" if layer_type else ""
        other = second.get(layer_type)
        if other is None:
            lines.append(f"{names[1]} has no table{where}")
            continue
        if one.rotated_dims != other.rotated_dims:
            lines.append(
                f"rotated dimensions{where}: {one.rotated_dims} by {names[0]}, {other.rotated_dims} by {names[1]}"
            )
            continue
        if not all(close(a, b) for a, b in zip(one.frequencies, other.frequencies, strict=True)):
            lines.append(f"frequencies{where}: {_describe(one)} by {names[0]}, {_describe(other)} by {names[1]}")
        if not close(one.rotation.temperature, other.rotation.temperature):
            lines.append(
                f"temperature{where}: {one.rotation.temperature:.6g} by {names[0]},"
                f" {other.rotation.temperature:.6g} by {names[1]}"
            )
        if not close(one.softmax_scale, other.softmax_scale):
            lines.append(
                f"softmax scale{where}: x {one.softmax_scale:.6g} by {names[0]}, x {other.softmax_scale:.6g}"
                f" by {names[1]}"
            )
        if one.rotation.length_dependent != other.rotation.length_dependent:
            lines.append(f"only one of {names[0]} and {names[1]} follows the running length{where}")
    return lines


def _describe(table: Table) -> str:
    divisors = [divisor for divisor in table.rotation.divisors if divisor != UNROTATED]
    scaling = "no scaling" if all(d == 1 for d in divisors) else f"divisors up to {max(divisors):.4g}"
    return f"base {table.base:g} and {scaling}"
