"""Lower: from (lambda, a) to the most portable config that expresses it exactly, and the weight edits it needs.

The ladder, from the widest reach to the last resort: the form that the method named, one factor for all pairs
(`linear`), a geometric change (a new base), and lists of divisors (`longrope`). Each candidate is read back by the
independent reader and taken only if it computes the planned divisors; what is missing of the temperature is folded
into the query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctxforge.checkpoint import ScaleRows, TensorInfo
from ctxforge.errors import CtxforgeError, UnsupportedError
from ctxforge.rope.architectures import ARCHITECTURES, Architecture
from ctxforge.rope.dialects import write_forms
from ctxforge.rope.fold import fold_temperature
from ctxforge.rope.reader import DIALECTS, ORIGINAL_KEY, Table, legacy_refusal, read_rotations
from ctxforge.rope.types import GroupPlan, RopeForm, RopeGeometry, RopePlan

_EXACT = 1e-9


@dataclass(frozen=True)
class Lowered:
    """What the plan becomes.

    Attributes:
        config: the whole new config.json, key order kept.
        tensors: weight edits.
        folded: the factor on q.k that the weights now carry, by layer type; 1 where nothing is folded.
        notes: how it was expressed and where engines differ, one line each.
        files: further files of the checkpoint (custom modeling code), by name.
    """

    config: dict[str, Any]
    tensors: tuple[ScaleRows, ...]
    folded: Mapping[str | None, float]
    notes: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


def lower(
    plan: RopePlan,
    geometry: RopeGeometry,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
) -> Lowered:
    """Express `plan` as edits to a checkpoint's config and weights.

    Args:
        plan: divisors and temperatures.
        geometry: the source's.
        config: the source's whole config.json.
        tensors: its tensor index, for the fold.

    Raises:
        UnsupportedError: no form that this architecture reads expresses the plan, or the fold meets quantised weights.
        CheckpointError: a tensor that the fold needs is missing.
    """
    inner = _inner(config, geometry.config_path)
    if not plan.changed:
        return Lowered(dict(config), (), {group.layer_type: 1.0 for group in plan.groups}, ())
    architecture = ARCHITECTURES[geometry.model_type]
    kept = {group.layer_type: group for group in plan.groups if not group.changed}
    forms: dict[str | None, tuple[RopeForm, float]] = {
        layer_type: (RopeForm("default"), group.base) for layer_type, group in kept.items()
    }
    edits: list[ScaleRows] = []
    folded: dict[str | None, float] = dict.fromkeys(kept, 1.0)
    notes: list[str] = []
    longest = plan.target_length
    patched = dict(inner)
    for group in (group for group in plan.groups if group.changed):
        form, base = _choose(plan, group, geometry, architecture, inner, forms)
        forms[group.layer_type] = (form, base)
        longest = plan.original_length if form.type == "dynamic" else plan.target_length
        patched = write_forms(inner, geometry, architecture, forms, longest, plan.original_length)
        table = read_rotations(patched, geometry.model_type, "transformers 5")[group.layer_type]
        factor = (group.rotation.temperature / table.rotation.temperature) ** 2
        folded[group.layer_type] = factor if abs(factor - 1) > _EXACT else 1.0
        if folded[group.layer_type] != 1.0:
            edits += fold_temperature(geometry, inner, tensors, group.layers, group.rotated_dims, factor)
        notes += _notes(form, factor, len(edits))
    refused = legacy_refusal(patched, geometry.model_type)
    if refused is not None:
        notes.append(f"transformers 4.x refuses the rope type {refused} for {geometry.model_type}: load with 5.x")
    return Lowered(_replace(config, geometry.config_path, patched), tuple(edits), folded, tuple(notes))


def _choose(
    plan: RopePlan,
    group: GroupPlan,
    geometry: RopeGeometry,
    architecture: Architecture,
    config: Mapping[str, Any],
    forms: Mapping[str | None, tuple[RopeForm, float]],
) -> tuple[RopeForm, float]:
    """The first form on the ladder that the architecture reads and that computes the planned divisors."""
    for form, base in _candidates(plan, group):
        if architecture.scaling_types is not None and form.type not in architecture.scaling_types:
            continue
        longest = plan.original_length if form.type == "dynamic" else plan.target_length
        trial = write_forms(
            config, geometry, architecture, {**forms, group.layer_type: (form, base)}, longest, plan.original_length
        )
        dialects = readable_dialects(trial, geometry.model_type)
        if all(_matches(trial, geometry.model_type, dialect, group, form) for dialect in dialects):
            return form, base
    raise UnsupportedError(
        f"no rope type that {geometry.model_type} reads expresses this plan", "choose another method (ctxforge methods)"
    )


def readable_dialects(config: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    """The dialects that read this config at all; transformers 4.57 refuses some types of some architectures loudly."""
    return DIALECTS[:1] if legacy_refusal(config, model_type) is not None else DIALECTS


def _matches(config: Mapping[str, Any], model_type: str, dialect: str, group: GroupPlan, form: RopeForm) -> bool:
    try:
        table = read_rotations(config, model_type, dialect)[group.layer_type]
    except CtxforgeError:
        return False
    if form.type == "dynamic":
        return table.rotation.length_dependent and group.rotation.length_dependent
    return worst_difference(table, group) <= _EXACT and not table.rotation.length_dependent


def worst_difference(table: Table, group: GroupPlan) -> float:
    """Largest relative difference between a reading's frequencies and the planned ones."""
    if table.rotated_dims != group.rotated_dims:
        return math.inf
    planned = [
        group.base ** (-2 * i / group.rotated_dims) / divisor for i, divisor in enumerate(group.rotation.divisors)
    ]
    differences: list[float] = [abs(read / wanted - 1) for read, wanted in zip(table.frequencies, planned, strict=True)]
    return max(differences)


def _candidates(plan: RopePlan, group: GroupPlan) -> Iterator[tuple[RopeForm, float]]:
    rotation = group.rotation
    divisors = rotation.divisors
    if rotation.form is not None:
        base = rotation.form.parameters.get("rope_theta", group.base)
        assert isinstance(base, int | float)
        yield rotation.form, float(base)
    if rotation.length_dependent:
        return
    if max(divisors) == min(divisors):
        yield RopeForm("linear", {"factor": divisors[0]}), group.base
    if len(divisors) > 1:
        yield RopeForm("default"), group.base * divisors[1] ** (group.rotated_dims / 2)
    # The temperature is spelled out with the very value that every engine would compute when it is absent, because
    # transformers 4 would compute another (it takes max_position_embeddings for the original length).
    default = longrope_temperature(plan.scale, plan.original_length)
    yield (
        RopeForm(
            "longrope",
            {
                "factor": plan.scale,
                "short_factor": list(divisors),
                "long_factor": list(divisors),
                ORIGINAL_KEY: plan.original_length,
                "attention_factor": default,
            },
        ),
        group.base,
    )


def longrope_temperature(scale: float, original_length: int) -> float:
    """a = sqrt(1 + ln s / ln L0), the default of every engine for `longrope` (2402.13753, section 4)."""
    return math.sqrt(1 + math.log(scale) / math.log(original_length)) if scale > 1 else 1.0


def _notes(form: RopeForm, factor: float, edits: int) -> list[str]:
    names = {"default": "a new rope_theta", "longrope": "longrope with equal factor lists"}
    lines = [f"expressed as {names.get(form.type, 'rope type ' + form.type)}"]
    if edits:
        lines.append(f"q.k x {factor:.6g} folded into {edits} query tensors: no engine can get this temperature wrong")
    if form.type == "linear":
        lines.append("vLLM and SGLang derive the length as max_position_embeddings x factor: pass --max-model-len")
    if form.type == "longrope":
        lines.append("llama.cpp's converter drops longrope lists for most architectures")
    return lines


def _inner(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for key in path:
        config = config[key]
    return config


def _replace(config: Mapping[str, Any], path: tuple[str, ...], inner: dict[str, Any]) -> dict[str, Any]:
    if not path:
        return inner
    return {key: _replace(value, path[1:], inner) if key == path[0] else value for key, value in config.items()}
