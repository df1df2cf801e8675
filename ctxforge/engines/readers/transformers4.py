"""transformers 4: reads `rope_scaling` and `rope_theta`, never `rope_parameters`.

Three generations of yarn, read in the released wheels: 4.43 to 4.50 took max_position_embeddings for the original
length; 4.51 to 4.54 read the original length, always used max/original as the factor and had no `truncate`; 4.55 and
later are what `ctxforge.rope.reader` emulates (4.55 still with max/original, which is the same wherever
max_position_embeddings = factor x original).
"""

from __future__ import annotations

from collections.abc import Callable

from ctxforge.engines.formulas import yarn
from ctxforge.engines.readers.transformers5 import snippet
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import context_specs
from ctxforge.engines.tables import from_rotations
from ctxforge.engines.types import Context, Engine, Reading
from ctxforge.rope.reader import legacy_note, legacy_refusal, read_rotations

_DIALECT = "transformers 4"
# Keys as in 4.51 to 4.54; `mscale` came with 4.51.
_MIDDLE = YarnKeys(attention_factor=True, mscale="pair", ratio=True)
_FIRST = YarnKeys(attention_factor=True)


def read_last(context: Context) -> Reading:
    """4.55 to 4.57."""
    refused = legacy_refusal(context.inner, context.model_type)
    if refused is not None:
        assert context.architecture is not None
        if context.architecture.legacy == "other":
            return Reading(doubt=legacy_note(context.inner, context.model_type))
        return Reading(refusal=f"it does not read the rope type {refused} for {context.model_type}")
    return Reading(from_rotations(context, read_rotations(context.inner, context.model_type, _DIALECT), _DIALECT))


def read_middle(context: Context) -> Reading:
    """4.51 to 4.54."""
    found = read_last(context)
    if not found.tables:
        return found
    tables = dict(found.tables)
    remarks: list[str] = []
    for layer_type, spec in context_specs(context, _DIALECT).items():
        if spec.rope_type == "yarn" and layer_type in tables:
            tables[layer_type] = _MIDDLE.table(spec)
            remarks += _MIDDLE.remarks(spec)
    return Reading(tables, remarks=tuple(remarks))


def read_first(context: Context) -> Reading:
    """4.43 to 4.50."""
    found = read_last(context)
    if not found.tables:
        return found
    tables = dict(found.tables)
    remarks: list[str] = []
    for layer_type, spec in context_specs(context, _DIALECT).items():
        if spec.rope_type == "yarn" and layer_type in tables:
            temperature = _FIRST.table(spec).temperature
            tables[layer_type] = yarn(spec, temperature, truncate=True, original=spec.longest)
            remarks.append("original_max_position_embeddings ignored: the ramp starts from max_position_embeddings")
            remarks += _FIRST.remarks(spec)
    return Reading(tables, remarks=tuple(remarks))


def _engine(
    versions: str, tag: str, read: Callable[[Context], Reading], classes: str, run: str | None = None
) -> Engine:
    return Engine(
        name="transformers",
        versions=versions,
        source=f"huggingface/transformers@{tag}:src/transformers/modeling_rope_utils.py",
        read=read,
        serve=snippet,
        classes=classes,
        by_model_type=True,
        code="the code in the checkpoint is written for transformers 5.12 and later; 4.57 has run it, unsupported",
        runs=None if run is None else ("transformers-4", run),
    )


ENGINES = (
    _engine("4.55 - 4.57", "v4.57.6", read_last, "transformers 4.57", "transformers 4.57"),
    _engine("4.51 - 4.54", "v4.54.1", read_middle, "transformers 4.54"),
    _engine("4.43 - 4.50", "v4.50.3", read_first, "transformers 4.50"),
)
