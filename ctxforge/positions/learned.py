"""Learned positions: stretch the table of embeddings, and the lengths that the config states."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ctxforge.checkpoint import ResampleRows, TensorInfo
from ctxforge.checkpoint.resample import sample
from ctxforge.errors import CheckpointError, InternalError, UnsupportedError, UsageError
from ctxforge.positions.architectures import LEARNED, CausalMask, LearnedTable
from ctxforge.positions.target import MAX_TARGET, check_target
from ctxforge.positions.types import PositionGeometry, PositionPlan
from ctxforge.rope import fields
from ctxforge.rope.lower import Lowered

if TYPE_CHECKING:
    from ctxforge.rope.methods import Method

_MAX_LAYERS = 4096
_LARGE_MASK = 2**30
_REPORT = "nothing was written; please report this with the command and the config.json"


def understand(config: Mapping[str, Any], *, trained_length: int | None = None) -> PositionGeometry:
    """The table of positions of a model with this config: as many as the config counts.

    Raises:
        CheckpointError: a value is malformed or out of range, or two keys contradict each other.
        UsageError: a trained length beyond the table.
    """
    model_type = str(config["model_type"])
    row = LEARNED[model_type]
    length = _length(config, row)
    layers = fields.integer(config, row.layers_key, row.default_layers, high=_MAX_LAYERS)
    windowed = _windowed_layers(config, row, layers)
    window = None
    if windowed and row.attention_types is not None:
        window = fields.integer(config, row.attention_types[1], row.default_window, high=MAX_TARGET)
    evidence = f"the table of positions has {length} rows"
    if trained_length is not None:
        if not 1 < trained_length <= length:
            raise UsageError(
                f"a trained length of {trained_length} tokens does not fit a table of {length} positions",
                f"pass --trained-length between 2 and {length}, or leave it out",
            )
        evidence = f"given by the user: the first {trained_length} of the table's {length} rows"
    return PositionGeometry(
        model_type=model_type,
        scheme="learned",
        layers=layers,
        heads=fields.integer(config, row.heads_key, row.default_heads, high=2**16),
        max_position_embeddings=length,
        original_length=trained_length or length,
        trained_length=trained_length or length,
        evidence=evidence,
        offset=row.offset,
        windowed_layers=windowed,
        window=window,
    )


def _length(config: Mapping[str, Any], row: LearnedTable) -> int:
    """The positions that the config counts."""
    found = {
        key: fields.integer(config, key, None, high=MAX_TARGET, low=2)
        for key in (row.length_key, *row.same_keys)
        if config.get(key) is not None
    }
    if len(set(found.values())) > 1:
        said = " and ".join(f"{key}={value}" for key, value in found.items())
        raise CheckpointError(
            f"config.json contradicts itself: {said}", f"remove all but {row.length_key}, set to the table's length"
        )
    return next(iter(found.values()), row.default_length)


def _windowed_layers(config: Mapping[str, Any], row: LearnedTable, layers: int) -> tuple[int, ...]:
    """The layers whose type is `local`; the key holds [[types, times], ...], by default global and local in turn."""
    if row.attention_types is None:
        return ()
    key = row.attention_types[0]
    value = config.get(key)
    if value is None:
        return tuple(range(1, layers, 2))
    types: list[object] = []
    problem = CheckpointError(f"config.json: {key} does not name a type for each of {layers} layers", "repair it")
    for entry in value if isinstance(value, list) else [None]:
        names, times = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(names, list) or not isinstance(times, int) or not 0 <= times <= _MAX_LAYERS:
            raise problem
        types += names * times
    if len(types) != layers:
        raise problem
    return tuple(index for index, kind in enumerate(types) if kind == "local")


def make_plan(
    geometry: PositionGeometry,
    method: Method,
    target_length: int | None,
    *,
    parameters: Mapping[str, object] | None = None,
    temperature: float | None = None,
    original_length: int | None = None,
) -> PositionPlan:
    """Stretch the first L0 rows of the table to `target_length`; see `ctxforge.positions.make_plan`."""
    resolved = dataclasses.asdict(method.build_parameters(parameters or {}))
    start = geometry.trained_length
    assert start is not None
    if method.name == "none":
        longest = target_length or geometry.max_position_embeddings
        return PositionPlan("none", resolved, start, longest, longest / start, ())
    if method.scheme != "learned":
        raise UnsupportedError(
            f"{method.name} changes {_KINDS.get(method.scheme, method.scheme)}, and {geometry.model_type} has a table"
            " of learned positions",
            "use --method learned-interpolation",
        )
    if temperature is not None:
        raise UsageError("a table of learned positions has no temperature to set", "leave --temperature out")
    if original_length is not None and original_length != start:
        raise UsageError(
            f"a table of {start} learned positions cannot be taken back to {original_length}",
            "convert the original checkpoint; for a table whose last rows were never trained, pass --trained-length",
        )
    target = check_target(target_length, start)
    return PositionPlan(method.name, resolved, start, target, target / start, _warnings(geometry, start, target))


_KINDS = {"rope": "rotary positions (RoPE)", "alibi": "ALiBi's slopes"}


def _warnings(geometry: PositionGeometry, start: int, target: int) -> tuple[str, ...]:
    scale = target / start
    lines = [
        "an interpolated table needs a fine-tune: no published result shows a language model at work on one untuned"
        " (2306.15595 only conjectures that interpolation carries over)",
    ]
    if scale >= 2:
        equal = math.floor(scale)
        lines.append(f"the last {equal} of the {target} positions share one embedding, that of position {start - 1}")
    if geometry.original_length is not None and geometry.original_length < start:
        lines.append(
            f"the table was already stretched from {geometry.original_length} to {start} rows: the stretched one is"
            " stretched again, which rounds twice; converting the original checkpoint rounds once"
        )
    if start < geometry.max_position_embeddings:
        dropped = geometry.max_position_embeddings - start
        lines.append(f"the table's last {dropped} rows, beyond the trained length of {start}, are dropped")
    if geometry.windowed_layers and geometry.window is not None:
        lines.append(
            f"{len(geometry.windowed_layers)} of {geometry.layers} layers attend to a window of {geometry.window}"
            f" tokens only, which is left alone: it spans {geometry.window / scale:g} of the trained positions now"
        )
    return tuple(lines + _mask_warnings(LEARNED[geometry.model_type].mask, geometry.layers, target))


def _mask_warnings(mask: CausalMask | None, layers: int, target: int) -> list[str]:
    """What the causal masks that the model's code builds would take, when that is a gibibyte or more."""
    if mask is None:
        return []
    count = layers if mask.per_layer else 1
    size = count * mask.element_bytes * target**2
    if size < _LARGE_MASK:
        return []
    where = "transformers" if mask.since_5 else "transformers 4.x"
    masks = f"{count} causal masks" if count > 1 else "a causal mask"
    return [f"{where} builds {masks} of {target} x {target} for this model: {size / 2**30:.3g} GiB"]


def lower(
    plan: PositionPlan, geometry: PositionGeometry, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Lowered:
    """The edit of the table and the config's lengths; see `ctxforge.positions.lower`."""
    if not plan.changed:
        return Lowered(dict(config), (), {}, ())
    row = LEARNED[geometry.model_type]
    info = _table(row, geometry, tensors)
    edit = ResampleRows(info.name, plan.target_length, geometry.offset, plan.original_length)
    stated = {key for key in (*row.same_keys, *row.legacy_keys) if config.get(key) is not None}
    changed = dict.fromkeys((row.length_key, *sorted(stated)), plan.target_length)
    new_rows = geometry.offset + plan.target_length
    notes = [f"{info.name} grows from {info.shape[0]} to {new_rows} rows, still an ordinary table for any engine"]
    length = geometry.max_position_embeddings
    masks = [found for found in tensors.values() if found.shape[-2:] == (length, length) and "bias" in found.name]
    if masks:
        notes.append(
            f"the source stores {len(masks)} causal masks of {length} x {length} ({masks[0].name}), which transformers"
            " ignores and builds anew: they are carried over as they are"
        )
    return Lowered({**config, **changed}, (edit,), {}, tuple(notes))


def _table(row: LearnedTable, geometry: PositionGeometry, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    """The table among the tensors.

    Raises:
        CheckpointError: it is missing, is there twice, or has another number of rows than the config says.
    """
    found = [tensors[name] for name in row.tensors if name in tensors]
    if len(found) != 1:
        problem = "no table of positions" if not found else "two tables of positions"
        raise CheckpointError(
            f"the checkpoint has {problem} ({' or '.join(row.tensors)})", "check the names with `ctxforge inspect`"
        )
    rows = geometry.max_position_embeddings + geometry.offset
    if len(found[0].shape) != 2 or found[0].shape[0] != rows:
        raise CheckpointError(
            f"{found[0].name} has shape {list(found[0].shape)}, but the config counts {rows} rows",
            f"make {row.length_key} in config.json agree with the table",
        )
    return found[0]


def prove(plan: PositionPlan, lowered: Lowered, config: Mapping[str, Any]) -> dict[str, float]:
    """Read the lengths back from `config`, and where the edit reads each of some hundred positions.

    Returns:
        The largest distance between where a new row is read and p * L0/L', in rows, over those probed.

    Raises:
        InternalError: a length or a place is wrong.
    """
    row = LEARNED[str(config["model_type"])]
    length, source = plan.target_length, plan.original_length
    keys = [key for key in (row.length_key, *row.same_keys, *row.legacy_keys) if config.get(key) is not None]
    if row.length_key not in keys or any(config[key] != length for key in keys):
        raise InternalError(f"the emitted config does not say {length} positions", _REPORT)
    edits = [edit for edit in lowered.tensors if isinstance(edit, ResampleRows)]
    if len(edits) != 1 or len(lowered.tensors) != 1 or edits[0].tensor not in row.tensors:
        raise InternalError("the table of positions is not what is edited", _REPORT)
    edit = edits[0]
    if (edit.skip, edit.rows, edit.source_rows) != (row.offset, length, source):
        raise InternalError(f"the table would not get {row.offset} + {length} rows", _REPORT)
    worst = Fraction(0)
    for position in {0, 1, length - 1, *range(0, length, max(1, length // 128))}:
        below, part = sample(position, source, length)
        wanted = min(Fraction(position) * Fraction(source, length), Fraction(source - 1))
        worst = max(worst, abs(min(below + Fraction(part, length), Fraction(source - 1)) - wanted))
    if worst > Fraction(1, 10**6):
        raise InternalError(f"the table would be read {float(worst):.3g} rows away from where it should", _REPORT)
    return {"table": float(worst)}
