"""What was measured against what ctxforge says, one line a difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ctxforge.rope import GroupPlan, RopeGeometry, RopeGroup, Rotation
from tests.architectures.measure import Layer, Measured, Turn, pooled_alike
from tests.architectures.replay import Replayed, Scaled

TOLERANCE = 1e-5
# Radians a token: below this a pair stands still.
_STILL = 1e-20
# Two runs of the same arithmetic in float32 may differ by this, relative.
_ROUNDING = 1e-6


def frequencies(base: float, rotated_dims: int, rotation: Rotation) -> tuple[float, ...]:
    """Radians a token of each pair."""
    found = (base ** (-2 * i / rotated_dims) / divisor for i, divisor in enumerate(rotation.divisors))
    return tuple(0.0 if frequency < _STILL else frequency for frequency in found)


def against_geometry(measured: Measured, geometry: RopeGeometry) -> list[str]:
    """A source's measured rotations against `understand`'s reading of its config."""
    lines = []
    if len(measured.layers) != geometry.layers:
        lines.append(f"{geometry.layers} layers by config, {len(measured.layers)} run")
    groups = {layer: group for group in geometry.groups for layer in group.layers}
    for layer in measured.layers:
        group = groups.get(layer.index)
        lines += _layer(layer, group, None if group is None else group.in_force, geometry.layout, temperature=True)
        if layer.main and layer.main[0].direction != geometry.direction:
            lines.append(f"layer {layer.index} turns in direction {layer.main[0].direction}, said {geometry.direction}")
    return lines


def against_plan(measured: Measured, groups: Iterable[GroupPlan], layout: str) -> list[str]:
    """A converted model's measured rotations against the plan, but for temperatures: weights may carry a part."""
    by_layer = {layer: group for group in groups for layer in group.layers}
    lines = []
    for layer in measured.layers:
        group = by_layer.get(layer.index)
        lines += _layer(layer, group, None if group is None else group.rotation, layout, temperature=False)
    return lines


def _layer(
    layer: Layer, group: RopeGroup | GroupPlan | None, rotation: Rotation | None, layout: str, *, temperature: bool
) -> list[str]:
    where = f"layer {layer.index}"
    if group is None or rotation is None:
        return [f"{where} is rotated (d={layer.main[0].rotated_dims}), said not to be"] if layer.main else []
    if not layer.main:
        return [f"{where} is not rotated, said to be"]
    wanted = frequencies(group.base, group.rotated_dims, rotation)
    lines = []
    for turn in layer.main:
        if turn.layout != layout:
            lines.append(f"{where} pairs {turn.layout}, said {layout}")
        lines += [f"{where} {line}" for line in _turn(turn, wanted)]
        if temperature and abs(turn.temperature / rotation.temperature - 1) > TOLERANCE:
            lines.append(f"{where} has temperature {turn.temperature:.6g}, said {rotation.temperature:.6g}")
    for name, turns in layer.others.items():
        for turn in turns:
            if turn.pooled and not pooled_alike(turn, wanted):
                lines.append(f"{where} {name} turns groups of tokens by other frequencies")
            elif not turn.pooled:
                lines += [f"{where} {name} {line}" for line in _turn(turn, wanted)]
    return lines


def _turn(turn: Turn, wanted: tuple[float, ...]) -> list[str]:
    if turn.rotated_dims != 2 * len(wanted):
        return [f"rotates {turn.rotated_dims} dimensions, said {2 * len(wanted)}"]
    for i, (measured, said) in enumerate(zip(turn.frequencies, wanted, strict=True)):
        if abs(measured - said) > max(TOLERANCE * said, _STILL):
            return [f"turns pair {i} by {measured:.7g} a token, said {said:.7g}"]
    return []


def temperatures(
    measured: Measured, replayed: Replayed, groups: Iterable[GroupPlan], *, normed: bool = False
) -> list[str]:
    """a of each layer's q.k against the plan's: the tables' own, and the square root of what the weights carry.

    Args:
        measured, replayed: of the converted model.
        groups: the plan's.
        normed: a norm follows the rotation, which cancels whatever factor comes to it; its own weights carry a.
    """
    by_layer = {layer: group for group in groups for layer in group.layers}
    before, behind = _by_module(replayed.rotary), _by_module(replayed.attention)
    lines = []
    for layer in measured.layers:
        group = by_layer.get(layer.index)
        planned = 1.0 if group is None else group.rotation.temperature
        for turn in layer.main:
            for module, factors in before.get(layer.module, {}).items():
                if module in layer.others:
                    continue
                where = f"layer {layer.index} {module}".rstrip()
                carried = _carried(factors, range(turn.first, turn.first + turn.rotated_dims))
                later = _later(behind.get(layer.module, {}).get(module, []))
                if isinstance(carried, str) or isinstance(later, str):
                    lines += [f"{where} {words}" for words in (carried, later) if isinstance(words, str)]
                    continue
                a = later**0.5 * (1.0 if normed else turn.temperature * carried**0.5)
                if abs(a / planned - 1) > TOLERANCE:
                    lines.append(
                        f"{where} has temperature {a:.6g} ({turn.temperature:.6g} in the tables), planned {planned:.6g}"
                    )
    return lines


def _later(calls: list[Factors]) -> float | str:
    """The factor on q.k that comes from behind the rotation, of whole heads; 1 where there is none."""
    products = [tuple(a * b for a in call[0] for b in (call[1][0],)) for call in calls]
    values = [value for product in products for value in product] or [1.0]
    keys = [value / call[1][0] for call in calls for value in call[1]] or [1.0]
    if max(values) - min(values) > TOLERANCE or max(keys) - min(keys) > TOLERANCE:
        return f"scales q or k behind the rotation unevenly: {calls}"
    return 1.0 if abs(values[0] - 1) <= _ROUNDING else values[0]


Factors = tuple[tuple[float, ...], ...]


def _by_module(scaled: list[Scaled]) -> Mapping[str, Mapping[str, list[Factors]]]:
    found: dict[str, dict[str, list[Factors]]] = {}
    for call in scaled:
        layer = f"{call.place.layers}.{call.place.index}"
        found.setdefault(layer, {}).setdefault(call.place.module, []).append(call.factors)
    return found


def _carried(calls: list[Factors], rotated: range) -> float | str:
    """The factor on q.k of the rotated dimensions; words where it is not one factor, of q or of k, of these alone."""
    factors = []
    for call in calls:
        scales = []
        for vector in call:
            inside = [vector[i] for i in rotated]
            if max(inside) - min(inside) > TOLERANCE or any(
                abs(value - 1) > _ROUNDING for i, value in enumerate(vector) if i not in rotated
            ):
                return f"scales q or k by {vector}"
            scales.append(sum(inside) / len(inside))
        factors.append(scales)
    changed = [[scale for scale in scales if abs(scale - 1) > _ROUNDING] for scales in factors]
    if not any(changed):
        return 1.0
    if any(len(scales) > 1 for scales in changed) or (len(factors[0]) == 1 and len(calls) > 1 and all(changed)):
        return f"scales both q and k: {factors}"
    values = [scale for scales in changed for scale in scales]
    if max(values) - min(values) > TOLERANCE or (len(factors[0]) > 1 and not all(changed)):
        return f"scales some of its calls only: {factors}"
    return values[0]
