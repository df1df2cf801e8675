"""Lower: from (lambda, a) to the most portable config that expresses it exactly, and the weight edits it needs.

The forms to try, in order, are `ctxforge.rope.ladder`'s. Each candidate is read back by the independent reader and
taken only if it computes the planned divisors; what is missing of the temperature is folded into the query, unless
the weights are to stay untouched: then a form must carry the temperature too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctxforge.checkpoint import ScaleRows, TensorEdit, TensorInfo
from ctxforge.errors import CtxforgeError, UnsupportedError
from ctxforge.rope import custom_code
from ctxforge.rope.architectures import ARCHITECTURES, Architecture
from ctxforge.rope.dialects import write_forms
from ctxforge.rope.fold import fold_temperature
from ctxforge.rope.ladder import Portability, candidates, lowering_notes
from ctxforge.rope.reader import DIALECTS, Table, legacy_note, legacy_refusal, read_rotations
from ctxforge.rope.types import GroupPlan, RopeForm, RopeGeometry, RopePlan

_EXACT = 1e-9
# Radians per token: slower than this, a pair turns by less than float32 resolves within any length.
STILL = 1e-20


@dataclass(frozen=True)
class Lowered:
    """What the plan becomes.

    Attributes:
        config: the whole new config.json, key order kept.
        tensors: weight edits.
        folded: the factor on q.k that the weights now carry, by layer type; 1 where nothing is folded.
        notes: how it was expressed and where engines differ, one line each.
        files: further files of the checkpoint (custom modeling code), by name.
        forms: the form that each table was written as.
    """

    config: dict[str, Any]
    tensors: tuple[TensorEdit, ...]
    folded: Mapping[str | None, float]
    notes: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    forms: Mapping[str | None, RopeForm] = field(default_factory=dict)


def lower(
    plan: RopePlan,
    geometry: RopeGeometry,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    portability: Portability = "widest",
) -> Lowered:
    """Express `plan` as edits to a checkpoint's config and weights.

    Args:
        plan: divisors and temperatures.
        geometry: the source's.
        config: the source's whole config.json.
        tensors: its tensor index, for the fold.
        portability: which engines the result is written for, see `ctxforge.rope.ladder`.

    Raises:
        UnsupportedError: no form that this architecture reads expresses the plan, or the fold meets quantised weights.
        CheckpointError: a tensor that the fold needs is missing.
    """
    if not plan.changed:
        return Lowered(dict(config), (), {group.layer_type: 1.0 for group in plan.groups}, ())
    config = custom_code.detach(config)
    inner = _inner(config, geometry.config_path)
    architecture = ARCHITECTURES[geometry.model_type]
    kept = {group.layer_type: group for group in plan.groups if not group.changed}
    forms: dict[str | None, tuple[RopeForm, float]] = {
        layer_type: (RopeForm("default"), group.base) for layer_type, group in kept.items()
    }
    edits: list[ScaleRows] = []
    folded: dict[str | None, float] = dict.fromkeys(kept, 1.0)
    notes: list[str] = []
    patched = dict(inner)
    for group in (group for group in plan.groups if group.changed):
        form, base = _choose(plan, group, geometry, architecture, inner, forms, portability)
        forms[group.layer_type] = (form, base)
        longest = plan.original_length if form.type == "dynamic" else plan.target_length
        patched = write_forms(inner, geometry, architecture, forms, longest, plan.original_length)
        table = read_rotations(patched, geometry.model_type, "transformers 5")[group.layer_type]
        factor = (group.rotation.temperature / table.rotation.temperature) ** 2
        folded[group.layer_type] = factor if abs(factor - 1) > _EXACT else 1.0
        new_edits: tuple[ScaleRows, ...] = ()
        if folded[group.layer_type] != 1.0:
            new_edits = fold_temperature(geometry, inner, tensors, group.layers, group.rotated_dims, factor)
        edits += new_edits
        notes += lowering_notes(form, group, portability, factor if new_edits else 1.0, new_edits, tensors)
    older = legacy_note(patched, geometry.model_type)
    if older is not None:
        notes.append(older)
    whole = _replace(config, geometry.config_path, patched)
    files: dict[str, bytes] = {}
    code = next((group.rotation.code for group in plan.groups if group.rotation.code is not None), None)
    if code is not None:
        whole, files, code_notes = custom_code.attach(code, whole, geometry)
        notes += code_notes
    unique = tuple(dict.fromkeys(notes))
    return Lowered(whole, tuple(edits), folded, unique, files, {key: form for key, (form, _base) in forms.items()})


def _choose(
    plan: RopePlan,
    group: GroupPlan,
    geometry: RopeGeometry,
    architecture: Architecture,
    config: Mapping[str, Any],
    forms: Mapping[str | None, tuple[RopeForm, float]],
    portability: Portability,
) -> tuple[RopeForm, float]:
    """The first form on the ladder that the architecture reads and that computes the planned rotation.

    Where weights must stay untouched, the temperature has to come out right too.
    """
    refused = []
    for form, base in candidates(plan, group, portability):
        if architecture.scaling_types is not None and form.type not in architecture.scaling_types:
            refused.append(form.type)
            continue
        longest = plan.original_length if form.type == "dynamic" else plan.target_length
        trying = {**forms, group.layer_type: (form, base)}
        try:
            trial = write_forms(config, geometry, architecture, trying, longest, plan.original_length)
        except UnsupportedError:
            continue
        dialects = readable_dialects(trial, geometry.model_type)
        with_temperature = portability != "widest" and group.rotation.code is None
        if all(
            _matches(trial, geometry.model_type, dialect, group, form, with_temperature=with_temperature)
            for dialect in dialects
        ):
            return form, base
    if portability != "widest":
        raise UnsupportedError(
            f"no rope type that {geometry.model_type} reads expresses this plan with the weights untouched",
            "use --portability widest, which folds the temperature into the query weights",
        )
    reads = f" (it reads {', '.join(architecture.scaling_types or ())} only)" if refused else ""
    raise UnsupportedError(
        f"no rope type that {geometry.model_type} reads expresses this plan{reads}",
        "choose another method (ctxforge methods)",
    )


def readable_dialects(config: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    """The dialects that read this config at all; transformers 4.57 refuses some types of some architectures loudly."""
    return DIALECTS[:1] if legacy_refusal(config, model_type) is not None else DIALECTS


def _matches(
    config: Mapping[str, Any],
    model_type: str,
    dialect: str,
    group: GroupPlan,
    form: RopeForm,
    *,
    with_temperature: bool,
) -> bool:
    try:
        table = read_rotations(config, model_type, dialect)[group.layer_type]
    except CtxforgeError:
        return False
    if form.type == "dynamic":
        return table.rotation.length_dependent and group.rotation.length_dependent
    if with_temperature and abs(table.rotation.temperature / group.rotation.temperature - 1) > _EXACT:
        return False
    return worst_difference(table, group) <= _EXACT and not table.rotation.length_dependent


def worst_difference(table: Table, group: GroupPlan) -> float:
    """Largest relative difference between a reading's frequencies and the planned ones.

    Pairs that don't rotate compare equal whatever tiny frequency stands for it.
    """
    if table.rotated_dims != group.rotated_dims:
        return math.inf
    planned = [
        group.base ** (-2 * i / group.rotated_dims) / divisor for i, divisor in enumerate(group.rotation.divisors)
    ]
    return max(relative_difference(read, wanted) for read, wanted in zip(table.frequencies, planned, strict=True))


def relative_difference(read: float, wanted: float) -> float:
    """|read/wanted - 1|; 0 when both stand for a pair that doesn't rotate."""
    if abs(read) < STILL and abs(wanted) < STILL:
        return 0.0
    return math.inf if wanted == 0 else abs(read / wanted - 1)


def _inner(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for key in path:
        config = config[key]
    return config


def _replace(config: Mapping[str, Any], path: tuple[str, ...], inner: dict[str, Any]) -> dict[str, Any]:
    if not path:
        return inner
    return {key: _replace(value, path[1:], inner) if key == path[0] else value for key, value in config.items()}
