"""Plan: a method applied to a geometry. Numbers in, numbers out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.rope.methods import METHODS, Method, Request
from ctxforge.rope.modifiers import Modifier, find_modifiers
from ctxforge.rope.spectrum import Spectrum
from ctxforge.rope.types import UNROTATED, GroupPlan, RopeGeometry, RopeGroup, RopePlan, Rotation

MAX_TARGET = 2**31
_LARGEST_SCALE = 4096
_SCHEMES = {"learned": "learned position embeddings", "alibi": "ALiBi"}


def make_plan(
    geometry: RopeGeometry,
    method: Method,
    target_length: int | None,
    *,
    parameters: Mapping[str, object] | None = None,
    temperature: float | None = None,
    original_length: int | None = None,
    modifiers: Sequence[str] = (),
) -> RopePlan:
    """What `method` makes of `geometry` at `target_length`.

    A scaling already in force is kept: the method works on the frequencies that the weights know now, from the length
    that they reach now, and the divisors multiply. With `original_length` the scaling in force is dropped and the
    method starts from the plain frequencies at that length. Modifiers work on the final divisors, in order.

    Args:
        geometry: the source's.
        method: a row of the method table.
        target_length: L' in tokens; may be None for `none`, and for methods with `any_target`, which then keep the
            trained length.
        parameters: the method's own parameters, by name; text values are parsed.
        temperature: replaces the method's a (cos and sin are multiplied by it; q.k by its square).
        original_length: L0 of the plain frequencies.
        modifiers: names from the table of modifiers.

    Raises:
        UsageError: a target that is missing, not longer than the source, or absurd; an unknown or wrong parameter or
            modifier.
        UnsupportedError: a trained length that can't be told, a scaling that can't be multiplied, or a method or
            modifier that doesn't go with this model.
    """
    _check_scheme(method, geometry)
    steps = find_modifiers(modifiers)
    resolved = method.build_parameters(parameters or {})
    name = "+".join((method.name, *modifiers))
    restarts = original_length is not None
    if method.name == "none":
        return _unchanged(geometry, name, resolved, target_length, steps)
    if geometry.nothing_to_extend is not None:
        raise UnsupportedError(
            geometry.nothing_to_extend, "the model's reach is set by its window and its layers without RoPE"
        )
    start = _starting_length(geometry, original_length)
    if target_length is None:
        if not method.any_target:
            raise UsageError("no target length", "say how long: --to 64k, --to 8x or --to 65536")
        target_length = start
    _check_target(target_length, start, any_target=method.any_target)
    composed = False
    groups = []
    warnings = list(_geometry_warnings(geometry))
    for group in geometry.groups:
        if not group.extendable:
            rotation = group.in_force
            changed = False
        else:
            kept = _kept_rotation(group, restarts)
            composed = composed or not kept.is_plain
            spectrum = Spectrum(group.rotated_dims, group.base, kept.divisors)
            request = Request(spectrum, start, target_length)
            rotation = _compose(method, method.compute(resolved, request), kept, temperature)
            rotation = _modify(rotation, group, steps)
            warnings += [line for line in method.warnings(resolved, request) if line not in warnings]
            changed = True
        groups.append(GroupPlan(group.layer_type, group.layers, group.rotated_dims, group.base, rotation, changed))
    warnings += _method_warnings(method)
    warnings += _scaling_warnings(geometry, composed, restarts, start)
    return RopePlan(
        method=name,
        parameters=dataclasses.asdict(resolved),
        original_length=start,
        target_length=target_length,
        scale=target_length / start,
        composed=composed,
        groups=tuple(groups),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _check_scheme(method: Method, geometry: RopeGeometry) -> None:
    if method.scheme == "rope":
        return
    fitting = [name for name, other in METHODS.items() if other.scheme == "rope" and other.needs == "nothing"]
    raise UnsupportedError(
        f"method and architecture don't combine: {method.name} extends {_SCHEMES[method.scheme]}, and"
        f" {geometry.model_type} has RoPE",
        f"use one of: {', '.join(fitting)}",
    )


def _starting_length(geometry: RopeGeometry, original_length: int | None) -> int:
    if original_length is not None:
        if not 1 < original_length < MAX_TARGET:
            raise UsageError(
                f"an original length of {original_length} tokens is not usable", "give --original-length in tokens"
            )
        return original_length
    if geometry.trained_length is None:
        raise UnsupportedError(
            f"the trained length is {geometry.evidence}",
            "pass --trained-length N to extend what the model reaches now, or --original-length N to start over from"
            " its length before the scaling",
        )
    return geometry.trained_length


def _check_target(target: int, start: int, *, any_target: bool) -> None:
    if any_target and target == start:
        return
    if target <= start:
        raise UsageError(
            f"the target of {target} tokens is not longer than the {start} that the model works at already",
            f"ask for more than {start} tokens, or pass --original-length if the model was trained at less",
        )
    if target > MAX_TARGET or target / start > _LARGEST_SCALE:
        raise UsageError(
            f"a target of {target} tokens is {target / start:.0f} times the trained length of {start}",
            f"ask for at most {min(MAX_TARGET, _LARGEST_SCALE * start)} tokens",
        )


def _kept_rotation(group: RopeGroup, restarts: bool) -> Rotation:
    plain = Rotation((1.0,) * (group.rotated_dims // 2))
    if restarts:
        return plain
    if group.in_force.form is not None and group.in_force.form.type == "dynamic":
        raise UnsupportedError(
            "the source scales dynamically with the running length; a static method can't be multiplied onto that",
            "restart from the trained length: --original-length N",
        )
    if group.in_force.code is not None:
        raise UnsupportedError(
            "the source rotates with custom code; nothing can be multiplied onto that",
            "restart from the trained length: --original-length N",
        )
    return group.in_force


def _compose(method: Method, new: Rotation, kept: Rotation, temperature: float | None) -> Rotation:
    """Divisors and temperatures multiply; the form that the method named holds only on plain frequencies.

    A pair that doesn't rotate in either doesn't rotate.
    """
    if temperature is not None and not 0.1 <= temperature <= 10:
        raise UsageError(f"a temperature of {temperature:g} is not usable", "give --temperature between 0.1 and 10")
    if temperature is not None and new.length_dependent:
        raise UnsupportedError(
            f"{method.title} has no one temperature to set", "leave --temperature out, or use a static method"
        )
    if new.code is not None and not kept.is_plain:
        raise UnsupportedError(
            f"{method.name} needs custom code, which can't be multiplied onto the scaling in force",
            "restart from the trained length before the scaling: --original-length N",
        )
    a = new.temperature if temperature is None else temperature
    divisors = tuple(min(n * k, UNROTATED) for n, k in zip(new.divisors, kept.divisors, strict=True))
    form = new.form if kept.is_plain else None
    return Rotation(divisors, a * kept.temperature, form, new.length_dependent, new.code)


def _modify(rotation: Rotation, group: RopeGroup, steps: Sequence[Modifier]) -> Rotation:
    """The modifiers applied in order; no named form holds after them."""
    if not steps:
        return rotation
    if rotation.length_dependent or rotation.code is not None:
        raise UnsupportedError(
            f"{steps[0].name} modifies one static table, and this rotation follows the running length or custom code",
            "use a static method with it, such as yarn",
        )
    divisors = rotation.divisors
    for step in steps:
        divisors = step.apply(divisors, group.rotated_dims, group.base)
    return Rotation(divisors, rotation.temperature)


def _unchanged(
    geometry: RopeGeometry, name: str, resolved: object, target: int | None, steps: Sequence[Modifier]
) -> RopePlan:
    """The plan of the method `none`: nothing changes but what modifiers change."""
    start = geometry.trained_length or geometry.max_position_embeddings
    groups = []
    for group in geometry.groups:
        changed = bool(steps) and group.extendable
        rotation = _modify(group.in_force, group, steps) if changed else group.in_force
        groups.append(GroupPlan(group.layer_type, group.layers, group.rotated_dims, group.base, rotation, changed))
    longest = target or geometry.max_position_embeddings
    return RopePlan(name, dataclasses.asdict(resolved), start, longest, longest / start, False, tuple(groups), ())  # type: ignore[call-overload]


def _method_warnings(method: Method) -> list[str]:
    lines = []
    if method.experimental:
        lines.append(f"{method.name} is experimental: no trained model converted with it is published")
    if method.needs == "calibration":
        lines.append(f"{method.name} needs calibration before the result is of use (training: {method.needs_training})")
    return lines


def _geometry_warnings(geometry: RopeGeometry) -> list[str]:
    lines = []
    for group in geometry.groups:
        if not group.extendable:
            lines.append(
                f"{len(group.layers)} windowed layers ({group.layer_type}, window {geometry.window}) keep their own"
                " RoPE: no distance beyond the window reaches them"
            )
        elif group.windowed_layers and len(group.windowed_layers) == len(group.layers):
            lines.append(
                f"every layer attends to a window of {geometry.window} tokens only: the conversion moves positions, it"
                " does not widen the window, so nothing farther back is seen directly"
            )
        elif group.windowed_layers:
            lines.append(
                f"{len(group.windowed_layers)} windowed layers (window {geometry.window}) share the rotary table with"
                " the full ones and are rescaled with them; their window is left alone"
            )
    if geometry.unrotated_layers:
        lines.append(f"{len(geometry.unrotated_layers)} layers have no RoPE and are left alone")
    return [*lines, *geometry.notes]


def _scaling_warnings(geometry: RopeGeometry, composed: bool, restarts: bool, start: int) -> list[str]:
    scaled = any(not group.in_force.is_plain for group in geometry.groups)
    lines = []
    if composed:
        lines.append(
            f"a scaling is already in force: the new divisors multiply it, from the {start} tokens that it reaches"
        )
        if any(group.in_force.length_dependent for group in geometry.groups):
            lines.append("the source switches between two factor lists; the long one is kept for every length")
    elif scaled and restarts:
        lines.append(f"the scaling in force is dropped: the method starts from plain frequencies at {start} tokens")
    return lines
