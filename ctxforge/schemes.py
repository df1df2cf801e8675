"""The kinds of positions that a model can have, each with the same four stages: RoPE, learned tables, ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge import positions, rope
from ctxforge.checkpoint import TensorInfo
from ctxforge.errors import UnsupportedError
from ctxforge.positions.types import PositionGeometry, PositionPlan
from ctxforge.recipe import MethodChoice
from ctxforge.rope import Lowered, RopeGeometry, RopePlan
from ctxforge.rope.ladder import parse_portability
from ctxforge.rope.methods import find_method

Geometry = RopeGeometry | PositionGeometry
Plan = RopePlan | PositionPlan


def understand(
    config: Mapping[str, Any], trained_length: int | None = None, recorded: Mapping[str, Any] | None = None
) -> Geometry:
    """The geometry of a checkpoint's config, whatever kind of positions it has.

    Args:
        config: config.json, parsed.
        trained_length: the length that the weights work at now, when the user knows better than the config.
        recorded: the `ctxforge.json` of an earlier conversion, where there is one.

    Raises:
        CheckpointError, UnsupportedError: see the `understand` of `ctxforge.rope` and of `ctxforge.positions`.
    """
    if positions.scheme(config) == "rope":
        return rope.understand(config, trained_length=trained_length)
    return positions.understand(config, trained_length=trained_length, recorded=recorded)


def make_plan(geometry: Geometry, choice: MethodChoice, target: int | None, original_length: int | None) -> Plan:
    """What a chosen method makes of a geometry at `target` tokens.

    Raises:
        UsageError, UnsupportedError: see the `make_plan` of each kind; a method for another kind of positions.
    """
    method = find_method(choice.name)
    if isinstance(geometry, PositionGeometry):
        if choice.modifiers:
            raise UnsupportedError(
                f"the modifier {choice.modifiers[0]!r} works on RoPE, and {geometry.model_type} has none",
                "leave it out",
            )
        return positions.make_plan(
            geometry,
            method,
            target,
            parameters=choice.parameters,
            temperature=choice.temperature,
            original_length=original_length,
        )
    return rope.make_plan(
        geometry,
        method,
        target,
        parameters=choice.parameters,
        temperature=choice.temperature,
        original_length=original_length,
        modifiers=choice.modifiers,
    )


def lower(
    plan: Plan, geometry: Geometry, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], portability: str
) -> Lowered:
    """Express a plan as edits.

    Raises:
        UsageError, UnsupportedError, CheckpointError: see the `lower` of each kind.
    """
    reach = parse_portability(portability)
    if isinstance(plan, PositionPlan):
        assert isinstance(geometry, PositionGeometry)
        return positions.lower(plan, geometry, config, tensors)
    assert isinstance(geometry, RopeGeometry)
    return rope.lower(plan, geometry, config, tensors, reach)


def prove(plan: Plan, lowered: Lowered, config: Mapping[str, Any]) -> dict[str, float]:
    """Recompute what `config`, about to be written, means, and compare it with the plan.

    Raises:
        InternalError: it means something else.
    """
    if isinstance(plan, PositionPlan):
        return positions.prove(plan, lowered, config)
    return rope.prove(plan, lowered, config)
