"""A config as transformers' config classes hand it on: the dict that vLLM, SGLang, llama.cpp's converter and TGI see.

In 5.x (`modeling_rope_utils.py`: convert_rope_params_to_dict, standardize_rope_params) `rope_scaling` and the top-level
keys move into `rope_parameters`. In 4.x `rope_scaling` and `rope_theta` are read, and `rope_parameters` is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.engines.types import Context, Spec
from ctxforge.rope import fields
from ctxforge.rope.architectures import Architecture
from ctxforge.rope.reader import ORIGINAL_KEY, max_positions, read_rotations

PROPORTIONAL = "proportional"
_SPECIFIC = (PROPORTIONAL,)
_ALIASES = {"su": "longrope"}


def specs(
    inner: Mapping[str, Any], model_type: str, architecture: Architecture, dialect: str
) -> dict[str | None, Spec]:
    """Each rotary table's dict as `dialect` ("transformers 5" or "transformers 4") reads it.

    Raises:
        CheckpointError, UnsupportedError: see `read_rotations`.
    """
    dicts = _dicts(inner, architecture, dialect)
    tables = read_rotations(_readable(inner, dicts), model_type, dialect)
    longest = max_positions(inner, architecture)
    found: dict[str | None, Spec] = {}
    for layer_type, table in tables.items():
        values = dicts.get(layer_type, {})
        found[layer_type] = Spec(
            rope_type=type_of(values),
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


def type_of(values: Mapping[str, Any]) -> str:
    """The rope type that a dict names; `default` when it names none."""
    name = values.get("rope_type") or values.get("type") or "default"
    return _ALIASES.get(str(name), str(name))


def _dicts(inner: Mapping[str, Any], architecture: Architecture, dialect: str) -> dict[str | None, dict[str, Any]]:
    """The rope dict of each table; empty where nothing is said."""
    legacy = fields.table(inner, "rope_scaling")
    modern = fields.table(inner, "rope_parameters") if dialect == "transformers 5" else None
    silent = modern is None and legacy is None and (dialect == "transformers 5" or "rope_scaling" not in inner)
    if silent and architecture.default_scaling is not None:
        legacy = dict(architecture.default_scaling)
    if not architecture.nested:
        return {None: dict(legacy or modern or {})}
    found: dict[str | None, dict[str, Any]] = {
        key: dict(value) for key, value in (modern or {}).items() if isinstance(value, Mapping)
    }
    found["full_attention"] = {**found.get("full_attention", {}), **(legacy or {})}
    return found


def _readable(inner: Mapping[str, Any], dicts: Mapping[str | None, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The config with a type that `read_rotations` leaves out replaced by the plain one, for d and the base."""
    if not any(type_of(values) in _SPECIFIC for values in dicts.values()):
        return inner
    return {key: _plain(value) if key.startswith("rope_") else value for key, value in inner.items()}


def _plain(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if type_of(value) in _SPECIFIC:
        return {"rope_type": "default", **{key: value[key] for key in ("rope_theta",) if key in value}}
    return {key: _plain(entry) for key, entry in value.items()}


def top_level_original(inner: Mapping[str, Any], architecture: Architecture) -> int | None:
    """A top-level original_max_position_embeddings, or the class's default for one."""
    if inner.get(ORIGINAL_KEY) is None:
        return architecture.default_original_length
    return fields.integer(inner, ORIGINAL_KEY, None, high=2**40, low=2)
