"""What was measured against what ctxforge says, one line a difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ctxforge.rope import GroupPlan, RopeGeometry, RopeGroup, Rotation
from tests.architectures.measure import Layer, Measured, Turn, pooled_alike
from tests.architectures.replay import Scaled

TOLERANCE = 1e-5
# Radians a token: below this a pair stands still.
_STILL = 1e-20


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
        if abs(measured - said) > TOLERANCE * said:
            return [f"turns pair {i} by {measured:.7g} a token, said {said:.7g}"]
    return []


def temperatures(measured: Measured, scaled: list[Scaled], groups: Iterable[GroupPlan]) -> list[str]:
    """a of each layer's q.k: the tables' own, times the square root of what the weights carry, against the plan's."""
    by_layer = {layer: group for group in groups for layer in group.layers}
    calls = _by_module(scaled)
    lines = []
    for layer in measured.layers:
        group = by_layer.get(layer.index)
        planned = 1.0 if group is None else group.rotation.temperature
        for turn in layer.main:
            for module, factors in calls.get(layer.module, {}).items():
                if module in layer.others:
                    continue
                where = f"layer {layer.index} {module}".rstrip()
                carried = _carried(factors, range(turn.first, turn.first + turn.rotated_dims))
                if isinstance(carried, str):
                    lines.append(f"{where} {carried}")
                elif abs(turn.temperature * carried**0.5 / planned - 1) > TOLERANCE:
                    lines.append(
                        f"{where} has temperature {turn.temperature * carried**0.5:.6g}"
                        f" ({turn.temperature:.6g} of it in the tables), planned {planned:.6g}"
                    )
    return lines


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
                abs(value - 1) > 1e-12 for i, value in enumerate(vector) if i not in rotated
            ):
                return f"scales q or k by {vector}"
            scales.append(sum(inside) / len(inside))
        factors.append(scales)
    changed = [[scale for scale in scales if abs(scale - 1) > 1e-12] for scales in factors]
    if not any(changed):
        return 1.0
    if any(len(scales) > 1 for scales in changed) or (len(factors[0]) == 1 and len(calls) > 1 and all(changed)):
        return f"scales both q and k: {factors}"
    values = [scale for scales in changed for scale in scales]
    if max(values) - min(values) > TOLERANCE or (len(factors[0]) > 1 and not all(changed)):
        return f"scales some of its calls only: {factors}"
    return values[0]
