"""The planned rotation and its likely misreadings, as rotary tables: what the reference run computes besides.

The planned tables come from ctxforge's own reader, so that a stock load is compared with the plan and not with itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ctxforge.rope.ladder import longrope_temperature
from ctxforge.rope.types import RopeGeometry, RopeGroup

# {layer type, or "" in a flat config: (radians per token, temperature)}
Tables = dict[str, tuple[list[float], float]]
PLANNED = "planned"
UNSCALED = "the scaling ignored"
DEFAULT_BASE = "the scaling ignored and theta 10000"
# Misreadings that an engine falls into by ignoring keys; the others below are finer.
CONTROLS = (UNSCALED, DEFAULT_BASE)
_SAME = 1e-9


def readings(geometry: RopeGeometry) -> dict[str, Tables]:
    """Tables by name: the planned ones, and each misreading that differs from them.

    For rotations that follow the running length no table stands for the plan: the plain ones alone, as controls.
    """
    if any(group.in_force.length_dependent for group in geometry.groups):
        misread = _misreadings(geometry)
        return {name: misread[name] for name in CONTROLS if name == UNSCALED or misread[name] != misread[UNSCALED]}
    planned = {_key(group): _table(group) for group in geometry.groups}
    found = {PLANNED: planned}
    for name, tables in _misreadings(geometry).items():
        if not _equal(tables, planned) and not any(_equal(tables, other) for other in found.values()):
            found[name] = tables
    return found


def _misreadings(geometry: RopeGeometry) -> dict[str, Tables]:
    groups = geometry.groups
    scaled = [group for group in groups if not group.in_force.is_plain]
    found = {
        UNSCALED: {_key(group): (_frequencies(group, group.base, scaled=False), 1.0) for group in groups},
        DEFAULT_BASE: {_key(group): (_frequencies(group, 10000.0, scaled=False), 1.0) for group in groups},
    }
    for name, temperature in _temperatures(geometry, scaled).items():
        found[name] = {
            _key(group): (_table(group)[0], temperature if group in scaled else group.in_force.temperature)
            for group in groups
        }
    return found


def _temperatures(geometry: RopeGeometry, scaled: list[RopeGroup]) -> dict[str, float]:
    """Temperatures that engines fall back to: none, and the defaults of yarn and longrope."""
    if not scaled:
        return {}
    found = {"the temperature ignored": 1.0}
    if geometry.original_length and geometry.max_position_embeddings > geometry.original_length:
        scale = geometry.max_position_embeddings / geometry.original_length
        found["yarn's default temperature"] = 0.1 * math.log(scale) + 1
        found["longrope's default temperature"] = longrope_temperature(scale, geometry.original_length)
    return found


def _key(group: RopeGroup) -> str:
    return group.layer_type or ""


def _table(group: RopeGroup) -> tuple[list[float], float]:
    return _frequencies(group, group.base, scaled=True), group.in_force.temperature


def _frequencies(group: RopeGroup, base: float, *, scaled: bool) -> list[float]:
    divisors = group.in_force.divisors if scaled else (1.0,) * len(group.in_force.divisors)
    return [base ** (-2 * i / group.rotated_dims) / divisor for i, divisor in enumerate(divisors)]


def _equal(one: Mapping[str, tuple[list[float], float]], other: Mapping[str, tuple[list[float], float]]) -> bool:
    return all(
        abs(one[key][1] / other[key][1] - 1) < _SAME
        and all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(one[key][0], other[key][0], strict=True))
        for key in one
    )
