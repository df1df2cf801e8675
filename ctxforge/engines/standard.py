"""A config as transformers' config classes hand it on: the dict that vLLM, SGLang, llama.cpp's converter and TGI see.

In 5.x (`modeling_rope_utils.py`: convert_rope_params_to_dict, standardize_rope_params) `rope_scaling` and the top-level
keys move into `rope_parameters`. In 4.x `rope_scaling` and `rope_theta` are read, and `rope_parameters` is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.engines.types import Context, Spec
from ctxforge.rope import fields
from ctxforge.rope.architectures import Architecture, TableRow
from ctxforge.rope.reader import ORIGINAL_KEY, max_positions, read_rotations
from ctxforge.rope.sizes import canonical

PROPORTIONAL = "proportional"
_ALIASES = {"su": "longrope"}


def specs(
    inner: Mapping[str, Any], model_type: str, architecture: Architecture, dialect: str
) -> dict[str | None, Spec]:
    """Each rotary table's dict as `dialect` ("transformers 5" or "transformers 4") reads it.

    Raises:
        CheckpointError, UnsupportedError: see `read_rotations`.
    """
    named = canonical(inner, architecture)
    dicts = _dicts(named, architecture, dialect)
    longest = max_positions(named, architecture)
    found: dict[str | None, Spec] = {}
    for layer_type, table in read_rotations(_readable(inner, dicts, dialect), model_type, dialect).items():
        values = dicts.get(layer_type, {})
        found[layer_type] = Spec(
            rope_type=type_of(values, architecture),
            dims=table.rotated_dims,
            base=table.base,
            original=table.original_length or longest,
            longest=longest,
            values=values,
        )
    return found


def context_specs(context: Context, dialect: str) -> dict[str | None, Spec]:
    """`specs` of a context's text model."""
    assert context.architecture is not None
    return specs(context.inner, context.model_type, context.architecture, dialect)


def type_of(values: Mapping[str, Any], architecture: Architecture | None = None) -> str:
    """The rope type that a dict names; `default` when it names none."""
    name = str(values.get("rope_type") or values.get("type") or "default")
    aliases = {} if architecture is None else dict(architecture.aliases)
    return aliases.get(name, _ALIASES.get(name, name))


def _dicts(inner: Mapping[str, Any], architecture: Architecture, dialect: str) -> dict[str | None, dict[str, Any]]:
    """The rope dict of each table; empty where nothing is said."""
    legacy = fields.table(inner, "rope_scaling")
    modern = fields.table(inner, "rope_parameters") if dialect == "transformers 5" else None
    if architecture.nested:
        return {row.label: _of_row(row, modern, legacy) for row in architecture.tables}
    silent = modern is None and legacy is None and (dialect == "transformers 5" or "rope_scaling" not in inner)
    if silent and architecture.default_scaling is not None:
        legacy = dict(architecture.default_scaling)
    return {None: dict(legacy or modern or {})}


def _of_row(row: TableRow, modern: Mapping[str, Any] | None, legacy: Mapping[str, Any] | None) -> dict[str, Any]:
    """One table's dict: its own, or the class's default, with a legacy rope_scaling merged over it."""
    own = (modern or {}).get(row.label)
    found = dict(own) if isinstance(own, Mapping) else dict(row.default or {})
    if legacy is not None and row.takes_scaling:
        found.update(legacy)
    return found


def _readable(
    inner: Mapping[str, Any], dicts: Mapping[str | None, Mapping[str, Any]], dialect: str
) -> Mapping[str, Any]:
    """The config without a type that transformers 4 lacks, for d and the base: other engines read these keys alike."""
    if dialect == "transformers 5" or all(type_of(values) != PROPORTIONAL for values in dicts.values()):
        return inner
    return {key: value for key, value in inner.items() if key not in ("rope_scaling", "rope_parameters")}


def top_level_original(inner: Mapping[str, Any], architecture: Architecture) -> int | None:
    """A top-level original_max_position_embeddings, or the class's default for one."""
    if inner.get(ORIGINAL_KEY) is None:
        return architecture.default_original_length
    return fields.integer(inner, ORIGINAL_KEY, None, high=2**40, low=2)
