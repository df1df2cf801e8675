"""Tables of `ctxforge.rope.reader` as the engines' comparison wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ctxforge.engines import formulas
from ctxforge.engines.standard import specs
from ctxforge.engines.types import Context, Rotary
from ctxforge.rope.architectures import Architecture
from ctxforge.rope.reader import ORIGINAL_KEY, Table, read_rotations


def from_rotations(context: Context, tables: Mapping[str | None, Table], dialect: str) -> dict[str | None, Rotary]:
    """`tables`, read from the context's config in `dialect`.

    Without a top-level original length, 4.x never leaves longrope's short list.
    """
    assert context.architecture is not None
    types = {
        key: spec.rope_type
        for key, spec in specs(context.inner, context.model_type, context.architecture, dialect).items()
    }
    found = {key: _rotary(table, types[key]) for key, table in tables.items()}
    if dialect == "transformers 4" and context.inner.get(ORIGINAL_KEY) is None:
        for key, table in found.items():
            if table.follows == formulas.FOLLOWS_LISTS and context.architecture.default_original_length is None:
                found[key] = replace(table, scaling="the short list at every length", follows="")
    return found


def meant(inner: Mapping[str, object], model_type: str, architecture: Architecture) -> dict[str | None, Rotary]:
    """What a config means: the tables of transformers 5.

    Raises:
        CheckpointError, UnsupportedError: see `read_rotations`.
    """
    found = specs(inner, model_type, architecture, "transformers 5")
    tables = read_rotations(inner, model_type, "transformers 5")
    return {key: _rotary(table, found[key].rope_type) for key, table in tables.items()}


def _rotary(table: Table, rope_type: str) -> Rotary:
    follows = ""
    if table.rotation.length_dependent:
        follows = formulas.FOLLOWS_LENGTH if rope_type == "dynamic" else formulas.FOLLOWS_LISTS
    return Rotary(
        table.rotated_dims,
        table.base,
        table.frequencies,
        table.rotation.temperature,
        "no scaling" if rope_type == "default" else rope_type,
        follows,
        table.softmax_scale,
    )
