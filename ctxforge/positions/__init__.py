"""Positions other than RoPE: learned tables and ALiBi, with the same stages as `ctxforge.rope`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ctxforge.positions.architectures import ALIBI, LEARNED
from ctxforge.positions.types import PositionGeometry, PositionPlan
from ctxforge.rope.custom_code import base_model_type

if TYPE_CHECKING:
    from types import ModuleType

    from ctxforge.checkpoint import TensorInfo
    from ctxforge.rope import Lowered, Method

__all__ = ["PositionGeometry", "PositionPlan", "lower", "make_plan", "prove", "scheme", "understand"]


def scheme(config: Mapping[str, Any]) -> Literal["rope", "learned", "alibi"]:
    """The kind of positions that a model with this config has; `rope` for all that isn't known to be another.

    A row of `ALIBI` may name, as its `when`, a config key that must be true for the row to hold (Falcon's `alibi`).
    """
    model_type = base_model_type(config)
    if not isinstance(model_type, str):
        return "rope"
    if model_type in LEARNED:
        return "learned"
    if model_type in ALIBI:
        when = getattr(ALIBI[model_type], "when", None)
        if when is None or config.get(when) is True:
            return "alibi"
    return "rope"


def understand(
    config: Mapping[str, Any], *, trained_length: int | None = None, recorded: Mapping[str, Any] | None = None
) -> PositionGeometry:
    """The positions of a checkpoint's config, whose `scheme` must not be `rope`.

    Args:
        config: config.json, parsed.
        trained_length: the length that the weights work at now, when the user knows better than the config.
        recorded: the `ctxforge.json` of an earlier conversion, parsed: it tells the length before it.

    Raises:
        CheckpointError: a value is missing, malformed or out of range, or two keys contradict each other.
        UsageError: a trained length that the model can't have.
    """
    module = _stages(scheme(config))
    geometry: PositionGeometry = module.understand(config, trained_length=trained_length)
    original = _recorded_original(recorded)
    if original is None or geometry.trained_length is None or original >= geometry.trained_length:
        return geometry
    from dataclasses import replace

    evidence = f"{geometry.evidence}; an earlier conversion extended it from {original}"
    return replace(geometry, original_length=original, evidence=evidence)


def make_plan(
    geometry: PositionGeometry,
    method: Method,
    target_length: int | None,
    *,
    parameters: Mapping[str, object] | None = None,
    temperature: float | None = None,
    original_length: int | None = None,
) -> PositionPlan:
    """What `method` makes of `geometry` at `target_length` tokens.

    Raises:
        UsageError: a target that is missing, not longer than the source, or absurd; an option that has no meaning here.
        UnsupportedError: a method for other positions.
    """
    plan: PositionPlan = _stages(geometry.scheme).make_plan(
        geometry,
        method,
        target_length,
        parameters=parameters,
        temperature=temperature,
        original_length=original_length,
    )
    return plan


def lower(
    plan: PositionPlan, geometry: PositionGeometry, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Lowered:
    """Express `plan` as edits to a checkpoint's config, weights and files.

    Raises:
        CheckpointError: a tensor that must change is missing, or isn't what the config says.
        UnsupportedError: this model can't express the plan.
    """
    lowered: Lowered = _stages(geometry.scheme).lower(plan, geometry, config, tensors)
    return lowered


def prove(plan: PositionPlan, lowered: Lowered, config: Mapping[str, Any]) -> dict[str, float]:
    """Recompute what `config`, about to be written, and the edits mean, and compare it with the plan.

    Returns:
        The largest difference, by what was compared.

    Raises:
        InternalError: they mean something else.
    """
    differences: dict[str, float] = _stages(scheme(config)).prove(plan, lowered, config)
    return differences


def _stages(kind: str) -> ModuleType:
    """The module that holds the stages of one kind of positions."""
    import importlib

    assert kind in ("learned", "alibi"), kind
    return importlib.import_module(f"ctxforge.positions.{kind}")


def _recorded_original(recorded: Mapping[str, Any] | None) -> int | None:
    plan = (recorded or {}).get("plan")
    original = plan.get("original_length") if isinstance(plan, Mapping) else None
    usable = isinstance(original, int) and not isinstance(original, bool) and original > 1
    return original if usable else None
