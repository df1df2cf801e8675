"""An independent reader of rotary scaling: config.json -> the rotation that transformers would compute.

Written apart from the methods on purpose, formula by formula after transformers 5.24 and 4.57
(`modeling_rope_utils.py`): it understands sources, and after lowering it recomputes what was emitted, so that a slip
in a method or in the lowering shows as a difference between two derivations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import fields, formulas
from ctxforge.rope.architectures import ARCHITECTURES, Architecture
from ctxforge.rope.types import Rotation

MAX_LENGTH = 2**40
MAX_HEAD_DIM = 2**16
DIALECTS = ("transformers 5", "transformers 4")
KNOWN_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
ORIGINAL_KEY = "original_max_position_embeddings"
_ALIASES = {"su": "longrope"}


@dataclass(frozen=True)
class Table:
    """One rotary table as a dialect reads it: d, base, the rotation, and the length its scaling starts from."""

    rotated_dims: int
    base: float
    rotation: Rotation
    original_length: int | None

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Radians per token, pair by pair."""
        return tuple(
            self.base ** (-2 * i / self.rotated_dims) / divisor for i, divisor in enumerate(self.rotation.divisors)
        )


def head_dim(config: Mapping[str, Any], architecture: Architecture) -> int:
    """Dimensions of a head: `head_dim`, else the type's own default, else hidden_size / num_attention_heads."""
    if config.get("head_dim") is not None:
        return fields.integer(config, "head_dim", None, high=MAX_HEAD_DIM)
    if architecture.default_head_dim is not None:
        return architecture.default_head_dim
    hidden = fields.integer(config, "hidden_size", None, high=2**24)
    heads = fields.integer(config, "num_attention_heads", architecture.default_heads, high=2**16)
    if hidden < heads:
        raise CheckpointError(
            f"config.json: hidden_size {hidden} is smaller than num_attention_heads {heads}", "repair config.json"
        )
    return hidden // heads


def max_positions(config: Mapping[str, Any], architecture: Architecture) -> int:
    """`max_position_embeddings`, or the type's default."""
    default = architecture.default_max_position_embeddings
    return fields.integer(config, "max_position_embeddings", default, high=MAX_LENGTH)


def read_rotations(config: Mapping[str, Any], model_type: str, dialect: str) -> dict[str | None, Table]:
    """Each rotary table of a text model's config as `dialect` reads it; key None for a flat config.

    Args:
        config: the text model's config.
        model_type: a key of `ARCHITECTURES`.
        dialect: "transformers 5" (rope_parameters, overridden by rope_scaling) or "transformers 4" (rope_theta and
            rope_scaling only; rope_parameters is ignored).

    Raises:
        CheckpointError: a value is missing or malformed.
        UnsupportedError: a rope type that transformers does not have, or that this architecture refuses.
    """
    architecture = ARCHITECTURES[model_type]
    legacy = fields.table(config, "rope_scaling")
    modern = fields.table(config, "rope_parameters") if dialect == "transformers 5" else None
    # 5.x fills in the default whenever it finds no dict; 4.x only when the key is absent altogether.
    silent = modern is None and legacy is None and (dialect == "transformers 5" or "rope_scaling" not in config)
    if silent and architecture.default_scaling is not None:
        legacy = dict(architecture.default_scaling)
    if architecture.nested:
        return _read_nested(config, architecture, modern, legacy, dialect)
    chosen = dict(legacy or modern or {})
    if chosen and all(isinstance(value, Mapping) for value in chosen.values()):
        raise UnsupportedError(
            f"config.json nests RoPE by layer type, which {model_type} does not read", "use one flat rope dict"
        )
    base = _base(config, architecture)
    if dialect == "transformers 5":
        base = fields.real(chosen, "rope_theta", base, low=1.0)
    return {None: _table(_Place(config, architecture, dialect, False), chosen, base)}


def _base(config: Mapping[str, Any], architecture: Architecture) -> float:
    return fields.real(config, architecture.base_key, architecture.default_base, low=1.0)


def _read_nested(
    config: Mapping[str, Any],
    architecture: Architecture,
    modern: Mapping[str, Any] | None,
    legacy: Mapping[str, Any] | None,
    dialect: str,
) -> dict[str | None, Table]:
    """Gemma 3's two tables: rope_scaling concerns full_attention alone, and is merged over rope_parameters."""
    assert architecture.local_base_key is not None
    full = dict(fields.table(modern or {}, "full_attention") or {})
    full.update(legacy or {})
    local = dict(fields.table(modern or {}, "sliding_attention") or {})
    local_base = fields.real(config, architecture.local_base_key, architecture.default_local_base, low=1.0)
    tables: dict[str | None, Table] = {}
    for layer_type, chosen, default in (
        ("full_attention", full, _base(config, architecture)),
        ("sliding_attention", local, local_base),
    ):
        base = fields.real(chosen, "rope_theta", default, low=1.0) if dialect == "transformers 5" else default
        place = _Place(config, architecture, dialect, nested=dialect == "transformers 5")
        tables[layer_type] = _table(place, chosen, base)
    return tables


def _rope_type(chosen: Mapping[str, Any]) -> str:
    modern, legacy = chosen.get("rope_type"), chosen.get("type")
    if modern is not None and legacy is not None and modern != legacy:
        raise CheckpointError(
            f"config.json: rope_type {modern!r} and type {legacy!r} contradict each other", "keep one of the two"
        )
    name = modern if modern is not None else legacy
    if name is None:
        return "default"
    if not isinstance(name, str):
        raise CheckpointError(f"config.json: rope_type is {name!r:.60}, not a name", "repair config.json")
    return _ALIASES.get(name, name)


@dataclass(frozen=True)
class _Place:
    """Where a rope dict stands: the config around it, whose dialect reads it, and whether it is nested."""

    config: Mapping[str, Any]
    architecture: Architecture
    dialect: str
    nested: bool


def _table(place: _Place, chosen: Mapping[str, Any], base: float) -> Table:
    rope_type = _rope_type(chosen)
    if rope_type not in KNOWN_TYPES:
        raise UnsupportedError(
            f"config.json: rope type {rope_type!r:.60} is not one that ctxforge understands",
            f"known types: {', '.join(KNOWN_TYPES)}; convert a checkpoint that uses one of them",
        )
    admitted = place.architecture.scaling_types
    if admitted is not None and rope_type not in admitted:
        raise UnsupportedError(
            f"config.json: this architecture does not read the rope type {rope_type!r}",
            f"it reads {', '.join(admitted)}",
        )
    d = _rotated_dims(place, chosen)
    longest = max_positions(place.config, place.architecture)
    original = _original_length(place, chosen, rope_type, longest)
    if rope_type == "default":
        rotation = Rotation((1.0,) * (d // 2))
    elif rope_type == "linear":
        factor = formulas.read_factor(chosen)
        rotation = Rotation((factor,) * (d // 2))
    elif rope_type == "dynamic":
        rotation = formulas.read_dynamic(chosen, d)
    elif rope_type == "llama3":
        rotation = formulas.read_llama3(chosen, d, base, original or longest)
    elif rope_type == "yarn":
        # 5.x looks for `truncate` beside nested dicts, never inside them, and so always truncates there.
        truncate = None if place.nested else fields.flag(chosen, "truncate", True)
        rotation = formulas.read_yarn(chosen, d, base, original or longest, longest, truncate=truncate)
    else:
        rotation = _longrope(place, chosen, d, original or longest, longest)
    return Table(d, base, rotation, original)


def _longrope(place: _Place, chosen: Mapping[str, Any], d: int, original: int, longest: int) -> Rotation:
    """4.x ignores the dict's original length: without a top-level one it never leaves the short list."""
    ratio = longest / original
    if place.dialect == "transformers 5":
        factor = formulas.read_factor(chosen) if chosen.get("factor") is not None else ratio
        return formulas.read_longrope(chosen, d, original, factor, past_original=longest > original)
    if _top_level_original(place) is not None:
        return formulas.read_longrope(chosen, d, original, ratio, past_original=longest > original)
    return formulas.read_longrope(chosen, d, longest, formulas.read_factor(chosen), past_original=False)


def _top_level_original(place: _Place) -> int | None:
    default = place.architecture.default_original_length
    if place.config.get(ORIGINAL_KEY) is None:
        return default
    return fields.integer(place.config, ORIGINAL_KEY, None, high=MAX_LENGTH, low=2)


def _original_length(place: _Place, chosen: Mapping[str, Any], rope_type: str, longest: int) -> int | None:
    """The length that the scaling starts from.

    A top-level key overrides the dict's: in 5.x for every type of a flat config, in 4.x for longrope alone.
    """
    if rope_type in ("default", "dynamic"):
        return longest
    if rope_type == "linear":
        return None
    heeds_top_level = place.dialect == "transformers 5" or rope_type == "longrope"
    if heeds_top_level and not place.nested:
        top_level = _top_level_original(place)
        if top_level is not None:
            return top_level
    return fields.integer(chosen, ORIGINAL_KEY, longest, high=MAX_LENGTH, low=2)


def _rotated_dims(place: _Place, chosen: Mapping[str, Any]) -> int:
    config, architecture = place.config, place.architecture
    head = head_dim(config, architecture)
    if architecture.fraction_key is None:
        for holder in (chosen, config):
            if fields.real(holder, "partial_rotary_factor", 1.0) != 1.0:
                raise UnsupportedError(
                    "config.json sets partial_rotary_factor, which this architecture reads for some rope types only",
                    "remove the key, or convert a model whose architecture has partial rotary embeddings",
                )
        return _even(head)
    fraction = fields.real(config, architecture.fraction_key, architecture.default_fraction)
    if place.dialect == "transformers 5":
        fraction = fields.real(chosen, "partial_rotary_factor", fraction)
    if fraction > 1:
        raise CheckpointError(f"config.json: a rotated fraction of {fraction:g} is above 1", "repair config.json")
    return _even(int(head * fraction))


def _even(dims: int) -> int:
    if dims < 2 or dims % 2:
        raise CheckpointError(
            f"config.json: {dims} rotated dimensions a head; an even number is needed", "repair config.json"
        )
    return dims


def legacy_refusal(config: Mapping[str, Any], model_type: str) -> str | None:
    """The scaling type that makes transformers 4.57 refuse a text model's config outright; None when it reads it."""
    admitted = ARCHITECTURES[model_type].legacy_types
    legacy = fields.table(config, "rope_scaling")
    if admitted is None or legacy is None:
        return None
    rope_type = _rope_type(legacy)
    return None if rope_type in admitted else rope_type


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
        other = second[layer_type]
        where = f" of {layer_type}" if layer_type else ""
        if one.rotated_dims != other.rotated_dims:
            lines.append(
                f"rotated dimensions{where}: {one.rotated_dims} by {names[0]}, {other.rotated_dims} by {names[1]}"
            )
            continue
        worst = max(abs(a / b - 1) for a, b in zip(one.frequencies, other.frequencies, strict=True))
        if worst > 1e-6:
            lines.append(f"frequencies{where}: {_describe(one)} by {names[0]}, {_describe(other)} by {names[1]}")
        if abs(one.rotation.temperature - other.rotation.temperature) > 1e-6:
            lines.append(
                f"temperature{where}: {one.rotation.temperature:.6g} by {names[0]},"
                f" {other.rotation.temperature:.6g} by {names[1]}"
            )
        if one.rotation.length_dependent != other.rotation.length_dependent:
            lines.append(f"only one of {names[0]} and {names[1]} follows the running length{where}")
    return lines


def _describe(table: Table) -> str:
    divisors = table.rotation.divisors
    scaling = "no scaling" if all(d == 1 for d in divisors) else f"divisors up to {max(divisors):.4g}"
    return f"base {table.base:g} and {scaling}"
