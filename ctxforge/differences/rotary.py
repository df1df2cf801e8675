"""What a change of config.json means for the rotation: each table's scaling in words, and how the speeds change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ctxforge.checkpoint import Checkpoint
from ctxforge.differences.types import RotaryDifference
from ctxforge.engines.standard import specs
from ctxforge.errors import CtxforgeError
from ctxforge.origins import understand_checkpoint
from ctxforge.positions.types import PositionGeometry
from ctxforge.provenance import FILE_NAME
from ctxforge.rope import RopeGeometry, RopeGroup
from ctxforge.rope.architectures import ARCHITECTURES
from ctxforge.rope.geometry import text_config
from ctxforge.rope.types import UNROTATED
from ctxforge.schemes import Geometry

_EQUAL = 1e-9
_UNDERSTOOD = "not understood: "


def rotary_differences(one: Checkpoint, other: Checkpoint) -> tuple[RotaryDifference, ...]:
    """Each rotary table of both checkpoints, as the readers of `ctxforge.rope` understand their configs.

    One entry for all positions where either side has no rotary tables or isn't understood.
    """
    before, after = _geometry(one), _geometry(other)
    lengths = tuple(None if isinstance(found, str) else found.trained_length for found in (before, after))
    if not isinstance(before, RopeGeometry) or not isinstance(after, RopeGeometry):
        words = _other_words(before), _other_words(after)
        return (RotaryDifference(None, *words, changed=words[0] != words[1], lengths=(lengths[0], lengths[1])),)
    tables = {group.layer_type: group for group in before.groups}
    others = {group.layer_type: group for group in after.groups}
    configs = text_config(one.config), text_config(other.config)
    found = []
    for label in dict.fromkeys((*tables, *others)):
        words = _words(tables.get(label), *configs[0]), _words(others.get(label), *configs[1])
        one_table = _difference(label, words, tables.get(label), others.get(label), (lengths[0], lengths[1]))
        found.append(replace(one_table, folded=(_folded(one, label), _folded(other, label))))
    return tuple(found)


def _folded(checkpoint: Checkpoint, label: str | None) -> float:
    """The factor on q.k that the conversion folded into the weights of one table's layers; 1 without a record."""
    try:
        tables = checkpoint.json_files[FILE_NAME]["plan"]["tables"]
        found = next(entry["folded_into_weights"] for entry in tables if entry["layer_type"] == label)
        return float(found)
    except (KeyError, TypeError, ValueError, StopIteration):
        return 1.0


def _geometry(checkpoint: Checkpoint) -> Geometry | str:
    try:
        return understand_checkpoint(checkpoint)
    except CtxforgeError as error:
        return f"{_UNDERSTOOD}{error.cause}"


def _other_words(geometry: Geometry | str) -> str:
    if isinstance(geometry, str):
        return geometry
    if isinstance(geometry, PositionGeometry):
        return f"{geometry.scheme} positions of {geometry.max_position_embeddings} tokens"
    return f"rotary positions of {geometry.max_position_embeddings} tokens"


def _words(group: RopeGroup | None, model_type: str, inner: Mapping[str, Any]) -> str:
    """A table's scaling in words: "yarn factor 4 from 4096, base 10000"."""
    if group is None:
        return "no table"
    rotation = group.in_force
    kind, factor, origin = "no scaling", "", ""
    try:
        spec = specs(inner, model_type, ARCHITECTURES[model_type], "transformers 5")[group.layer_type]
    except (CtxforgeError, KeyError):
        spec = None
    if spec is not None and spec.rope_type != "default":
        kind = spec.rope_type
        if isinstance(spec.values.get("factor"), int | float):
            factor = f" factor {spec.values['factor']:g}"
        if spec.original != spec.longest:
            origin = f" from {spec.original}"
    if rotation.code is not None:
        kind = f"code {rotation.code.name}" if kind == "no scaling" else f"{kind}{factor}, code {rotation.code.name}"
    follows = ", follows the running length" if rotation.length_dependent else ""
    return f"{kind}{factor}{origin}, base {group.base:g}{follows}"


def _difference(
    label: str | None,
    words: tuple[str, str],
    before: RopeGroup | None,
    after: RopeGroup | None,
    lengths: tuple[int | None, int | None],
) -> RotaryDifference:
    if before is None or after is None:
        return RotaryDifference(label, *words, changed=True, lengths=lengths)
    temperature = before.in_force.temperature, after.in_force.temperature
    pairs = len(after.in_force.divisors)
    if before.rotated_dims != after.rotated_dims:
        dims = tuple(f"{text}, {group.rotated_dims} dims" for text, group in zip(words, (before, after), strict=True))
        return RotaryDifference(
            label, dims[0], dims[1], changed=True, pairs=pairs, temperature=temperature, lengths=lengths
        )
    ratios = [_ratio(before, after, pair) for pair in range(pairs)]
    pair = max(range(pairs), key=lambda index: abs(math.log(ratios[index])))
    moved = sum(abs(ratio - 1) > _EQUAL for ratio in ratios)
    same = (
        moved == 0
        and abs(temperature[0] / temperature[1] - 1) <= _EQUAL
        and abs(before.softmax_scale / after.softmax_scale - 1) <= _EQUAL
        and before.in_force.length_dependent == after.in_force.length_dependent
        and before.in_force.code == after.in_force.code
        and lengths[0] == lengths[1]
    )
    return RotaryDifference(label, *words, not same, ratios[pair], pair, moved, pairs, temperature, lengths)


def _ratio(before: RopeGroup, after: RopeGroup, pair: int) -> float:
    """How many times as fast A turns this pair as B does; a pair that stands still is 1e30 times slower than plain."""
    one, other = before.in_force.divisors[pair], after.in_force.divisors[pair]
    if one == other == UNROTATED:
        return 1.0
    plain: float = (after.base / before.base) ** (2 * pair / before.rotated_dims)
    return plain * other / one
