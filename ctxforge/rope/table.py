"""One rotary table: from a rope dict and the config around it to the rotation that a dialect computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import CheckpointError, UnsupportedError
from ctxforge.rope import fields, formulas
from ctxforge.rope.architectures import Architecture, TableRow
from ctxforge.rope.sizes import MAX_LENGTH, full_head_dim, latent_rotated, max_positions
from ctxforge.rope.types import UNROTATED, Rotation

KNOWN_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
ORIGINAL_KEY = "original_max_position_embeddings"
_ALIASES = {"su": "longrope"}
# Slower than this divisor, in an emitted list, a pair stands still.
_STILL = 1e12


@dataclass(frozen=True)
class Table:
    """One rotary table as a dialect reads it.

    Attributes:
        rotated_dims: d.
        base: b of the plain frequencies.
        rotation: what is computed.
        original_length: the length that its scaling starts from.
        scaled: whether any scaling is in force (pairs that never turn are none).
        softmax_scale: what the attention multiplies the whole of q.k by because of this dict (MLA).
    """

    rotated_dims: int
    base: float
    rotation: Rotation
    original_length: int | None
    scaled: bool = False
    softmax_scale: float = 1.0

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Radians per token, pair by pair."""
        return tuple(
            self.base ** (-2 * i / self.rotated_dims) / divisor for i, divisor in enumerate(self.rotation.divisors)
        )


@dataclass(frozen=True)
class Place:
    """Where a rope dict stands: the config around it, whose dialect reads it, and its row when it is one of several."""

    config: Mapping[str, Any]
    architecture: Architecture
    dialect: str
    row: TableRow | None = None

    @property
    def modern(self) -> bool:
        """True for transformers 5."""
        return self.dialect == "transformers 5"

    @property
    def nested(self) -> bool:
        """True when the dict is read from inside `rope_parameters`, with no top-level key beside it."""
        return self.row is not None and self.modern


def rope_type(chosen: Mapping[str, Any], architecture: Architecture) -> str:
    """The type that a rope dict names, aliases resolved.

    Raises:
        CheckpointError: two names that contradict each other, or something that is no name.
    """
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
    return dict(architecture.aliases).get(name, _ALIASES.get(name, name))


def read_table(place: Place, chosen: Mapping[str, Any], base: float) -> Table:
    """The table that `place.dialect` computes from the dict `chosen` and the base `base`.

    Raises:
        CheckpointError: a value is missing or malformed.
        UnsupportedError: a type that transformers does not have, or that this architecture refuses.
    """
    kind = rope_type(chosen, place.architecture)
    _admit(place, kind)
    d = _rotated_dims(place, chosen, kind)
    longest = max_positions(place.config, place.architecture)
    original = _original_length(place, chosen, kind, longest)
    rotation = _rotation(place, chosen, kind, d, base, original, longest)
    if kind != "default" and place.architecture.mscale_keys:
        rotation = _own_temperature(rotation, chosen, longest > (original or longest))
    rotation = _settled(place.architecture, rotation)
    scaled = rotation.length_dependent or any(value not in (1.0, UNROTATED) for value in rotation.divisors)
    scaled = scaled or rotation.temperature != 1.0
    return Table(d, base, rotation, original, scaled, _softmax_scale(place, chosen, kind))


def _admit(place: Place, kind: str) -> None:
    if kind not in KNOWN_TYPES:
        raise UnsupportedError(
            f"config.json: rope type {kind!r:.60} is not one that ctxforge understands",
            f"known types: {', '.join(KNOWN_TYPES)}; convert a checkpoint that uses one of them",
        )
    if kind == "proportional" and not place.modern:
        raise UnsupportedError(
            "transformers 4.57 has no rope type 'proportional'", "load the checkpoint with transformers 5"
        )
    admitted = place.architecture.scaling_types
    if admitted is not None and kind not in admitted:
        raise UnsupportedError(
            f"config.json: this architecture does not read the rope type {kind!r}", f"it reads {', '.join(admitted)}"
        )


def _rotation(
    place: Place,
    chosen: Mapping[str, Any],
    kind: str,
    d: int,
    base: float,
    original: int | None,
    longest: int,
) -> Rotation:
    if kind == "default":
        return Rotation((1.0,) * (d // 2))
    if kind == "linear":
        return Rotation((formulas.read_factor(chosen),) * (d // 2))
    if kind == "proportional":
        return formulas.read_proportional(chosen, d)
    if kind == "dynamic":
        if place.architecture.alpha and chosen.get("alpha"):
            return formulas.read_alpha(chosen, d)
        return formulas.read_dynamic(chosen, d)
    if kind == "llama3":
        return formulas.read_llama3(chosen, d, base, original or longest)
    if kind == "yarn":
        # 5.x looks for `truncate` beside nested dicts, never inside them, and so always truncates there.
        truncate = None if place.nested else fields.flag(chosen, "truncate", True)
        return formulas.read_yarn(chosen, d, base, original or longest, longest, truncate=truncate)
    return _longrope(place, chosen, d, original or longest, longest)


def _longrope(place: Place, chosen: Mapping[str, Any], d: int, original: int, longest: int) -> Rotation:
    """4.x ignores the dict's original length: without a top-level one it never leaves the short list."""
    ratio = longest / original
    if place.modern:
        factor = formulas.read_factor(chosen) if chosen.get("factor") is not None else ratio
        return formulas.read_longrope(chosen, d, original, factor, past_original=longest > original)
    if _top_level_original(place) is not None:
        return formulas.read_longrope(chosen, d, original, ratio, past_original=longest > original)
    return formulas.read_longrope(chosen, d, longest, formulas.read_factor(chosen), past_original=False)


def _own_temperature(rotation: Rotation, chosen: Mapping[str, Any], past_original: bool) -> Rotation:
    """PhiMoE multiplies cos and sin by its own two keys, whatever the type's formula says."""
    temperature = fields.real(chosen, "long_mscale" if past_original else "short_mscale", None)
    return Rotation(rotation.divisors, temperature, rotation.form, rotation.length_dependent)


def _settled(architecture: Architecture, rotation: Rotation) -> Rotation:
    """The rotation as q.k feels it: pairs that stand still marked so, and no temperature that a norm cancels."""
    temperature = 1.0 if architecture.norm_after_rotation else rotation.temperature
    if architecture.rotates_values and temperature != 1.0:
        raise UnsupportedError(
            f"config.json: a temperature of {temperature:g} on cos and sin would scale this architecture's values too",
            "set attention_factor to 1",
        )
    divisors = tuple(UNROTATED if value >= _STILL else value for value in rotation.divisors)
    return Rotation(divisors, temperature, rotation.form, rotation.length_dependent)


def _softmax_scale(place: Place, chosen: Mapping[str, Any], kind: str) -> float:
    """m(mscale_all_dim)^2: what MLA's attention multiplies its softmax scale by.

    transformers:models/deepseek_v3/modeling_deepseek_v3.py `yarn_apply_mscale`.
    """
    architecture = place.architecture
    heeded = architecture.scales_softmax and (place.modern or architecture.legacy_scales_softmax)
    if not heeded or kind == "default":
        return 1.0
    mscale = fields.real(chosen, "mscale_all_dim", 0.0, low=-1.0)
    if not mscale:
        return 1.0
    return formulas.mscale(formulas.read_factor(chosen), mscale) ** 2


def _top_level_original(place: Place) -> int | None:
    default = place.architecture.default_original_length
    if place.config.get(ORIGINAL_KEY) is None:
        return default
    return fields.integer(place.config, ORIGINAL_KEY, None, high=MAX_LENGTH, low=2)


def _original_length(place: Place, chosen: Mapping[str, Any], kind: str, longest: int) -> int | None:
    """The length that the scaling starts from.

    A top-level key overrides the dict's: in 5.x for every type of a flat config, in 4.x for longrope alone.
    """
    if kind == "dynamic" or kind == "default":
        return longest
    if kind == "proportional":
        return longest if formulas.read_optional_factor(chosen) == 1.0 else None
    if kind == "linear":
        return None
    heeds_top_level = place.modern or kind == "longrope"
    if heeds_top_level and not place.nested:
        top_level = _top_level_original(place)
        if top_level is not None:
            return top_level
    return fields.integer(chosen, ORIGINAL_KEY, longest, high=MAX_LENGTH, low=2)


def table_head_dim(place: Place) -> int:
    """Dimensions of a head in the layers of this table."""
    row, config, architecture = place.row, place.config, place.architecture
    if row is not None and row.head_dim_key is not None:
        own = _layer_override(config, row, "head_dim")
        if own is not None:
            return own
        return fields.integer(config, row.head_dim_key, row.default_head_dim, high=2**16)
    return full_head_dim(config, architecture)


def _layer_override(config: Mapping[str, Any], row: TableRow, key: str) -> int | None:
    """`key` for the layers of `row` in `per_layer_config`, as 5.x saves sizes that differ by layer."""
    by_layer, kinds = config.get("per_layer_config"), config.get("layer_types")
    if not isinstance(by_layer, Mapping) or not isinstance(kinds, list):
        return None
    for i, kind in enumerate(kinds):
        own = by_layer.get(str(i))
        if kind in row.layer_kinds and isinstance(own, Mapping) and own.get(key) is not None:
            return fields.integer(own, key, None, high=2**16)
    return None


def _rotated_dims(place: Place, chosen: Mapping[str, Any], kind: str) -> int:
    config, architecture = place.config, place.architecture
    if architecture.rotated_key is not None:
        own = None if place.row is None else _layer_override(config, place.row, architecture.rotated_key)
        return _even(own if own is not None else latent_rotated(config, architecture))
    head = table_head_dim(place)
    if kind == "proportional":
        return _even(head)
    if architecture.fraction_key is None:
        # A table of several is written by its class, whose default rotation heeds no fraction.
        holders = (chosen, config) if place.row is None else (chosen,) if kind != "default" else ()
        for holder in holders:
            if fields.real(holder, "partial_rotary_factor", 1.0) != 1.0:
                raise UnsupportedError(
                    "config.json sets partial_rotary_factor, which this architecture reads for some rope types only",
                    "remove the key, or convert a model whose architecture has partial rotary embeddings",
                )
        return _even(head)
    fraction = architecture.default_fraction
    if architecture.rotary_dim_key is not None and config.get(architecture.rotary_dim_key) is not None:
        fraction = fields.integer(config, architecture.rotary_dim_key, None, high=2**16) / head
    if place.row is None:
        fraction = fields.real(config, architecture.fraction_key, fraction)
    elif config.get(architecture.fraction_key) is not None and not place.architecture.legacy_scaling:
        fraction = fields.real(config, architecture.fraction_key, fraction) if architecture.rotates_tail else fraction
    if place.modern:
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


def close(a: float, b: float) -> bool:
    """Equal to 1e-6 relative; both below any angle that float32 resolves count as equal."""
    still = 1e-11
    return (abs(a) < still and abs(b) < still) or (b != 0 and math.isclose(a, b, rel_tol=1e-6))
