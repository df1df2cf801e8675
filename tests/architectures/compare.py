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


def temperatures(measured: Measured, scaled: list[Scaled], groups: Iterable[GroupPlan], before: Measured) -> list[str]:
    """a of each layer's q.k: the tables' own, times the square root of what the weights carry, against the plan's."""
    by_layer = {layer: group for group in groups for layer in group.layers}
    factors = _factors(scaled)
    lines = []
    for layer, source in zip(measured.layers, before.layers, strict=True):
        group = by_layer.get(layer.index)
        planned = 1.0 if group is None else group.rotation.temperature
        for turn, original in zip(layer.main, source.main, strict=True):
            here = factors.get(layer.module, {})
            inside = range(turn.first, turn.first + turn.rotated_dims)
            for module, vectors in here.items():
                if module in layer.others:
                    continue
                folded = {round(vector[i], 7) for vector in vectors for i in inside} - {1.0}
                outside = {round(v, 6) for vector in vectors for i, v in enumerate(vector) if i not in inside} - {1.0}
                if outside:
                    lines.append(f"layer {layer.index} scales dimensions that are not rotated by {sorted(outside)}")
                if len({round(x, 5) for x in folded}) > 1:
                    lines.append(f"layer {layer.index} scales q and k by {sorted(folded)}")
                    continue
                a = turn.temperature * (folded.pop() if folded else 1.0) ** 0.5
                if abs(a / planned - 1) > TOLERANCE:
                    lines.append(
                        f"layer {layer.index} has temperature {a:.6g} ({turn.temperature:.6g} in its tables,"
                        f" {original.temperature:.6g} before), planned {planned:.6g}"
                    )
    return lines


def _factors(scaled: list[Scaled]) -> Mapping[str, Mapping[str, list[tuple[float, ...]]]]:
    """By layer and module, the distinct factors of its calls. A call that scales both q and k counts its product."""
    found: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for call in scaled:
        layer = f"{call.place.layers}.{call.place.index}"
        vectors = found.setdefault(layer, {}).setdefault(call.place.module, [])
        if len(call.factors) == 2 and len(call.factors[0]) == len(call.factors[1]):
            vectors.append(tuple(a * b for a, b in zip(*call.factors, strict=True)))
        else:
            vectors.extend(call.factors)
    return found
