"""SGLang.

Read in the released 0.5.23: python/sglang/srt/layers/rotary_embedding/factory.py (get_rope) and the classes beside it,
python/sglang/srt/models/*.py for what each model class hands to it, and
python/sglang/srt/utils/hf_transformers/common.py (get_context_length). It runs on transformers 5.
"""

from __future__ import annotations

from dataclasses import replace

from ctxforge.engines import formulas
from ctxforge.engines.classes import kind_of
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import PROPORTIONAL, context_specs
from ctxforge.engines.types import Context, Engine, Reading, Rotary, Spec
from ctxforge.rope import fields
from ctxforge.rope.reader import ORIGINAL_KEY

_YARN = YarnKeys(truncate=True, mscale="both", attn_factor=True)
_TRANSFORMERS_YARN = YarnKeys(attention_factor=True, truncate=True, mscale="pair")
_KNOWN = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", PROPORTIONAL)
_SETS_ORIGINAL = ("llama3", "yarn", "longrope")
_FLAGS = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"


def read(context: Context) -> Reading:
    """0.5.23."""
    found = context_specs(context, "transformers 5")
    kind = kind_of("sglang", context.class_name)
    if kind == "gemma3":
        return _gemma3(context, found)
    tables: dict[str | None, Rotary] = {}
    remarks: list[str] = []
    for layer_type, spec in found.items():
        if kind in ("ignores", "whole base"):
            tables[layer_type] = _unscaled(spec, whole=kind == "whole base")
            remarks.append("its model class hands on no scaling")
            continue
        if spec.rope_type not in _KNOWN:
            return Reading(refusal=f"ValueError: unknown RoPE scaling type {spec.rope_type}")
        tables[layer_type] = _table(context, spec)
        remarks += _remarks(spec, tables[layer_type])
    return Reading(tables, _served(found), tuple(dict.fromkeys(remarks)))


def _gemma3(context: Context, found: dict[str | None, Spec]) -> Reading:
    """models/gemma3_causal.py, Gemma3RotaryEmbedding: transformers' own formulas on a dict no longer nested, where
    `truncate` counts. On a CPU with AMX it takes get_rope without a dict instead.
    """
    tables = dict(context.meant)
    for layer_type, spec in found.items():
        if spec.rope_type == "yarn":
            tables[layer_type] = _TRANSFORMERS_YARN.table(spec)
    return Reading(tables, _served(found), notes=("on a CPU with AMX its full layers are not scaled",))


def _unscaled(spec: Spec, *, whole: bool) -> Rotary:
    """Classes that call get_rope without a dict; some of them with int(rope_theta)."""
    return formulas.plain(replace(spec, base=float(int(spec.base))) if whole else spec)


def _table(context: Context, spec: Spec) -> Rotary:
    if spec.rope_type == "linear":
        return formulas.linear(spec)
    if spec.rope_type == "llama3":
        return formulas.llama3(spec)
    if spec.rope_type == "yarn":
        return _YARN.table(spec)
    if spec.rope_type == "dynamic":
        # rope_variant.py: a fixed table for max_position_embeddings * factor positions.
        factor = formulas.yarn_factor(spec)
        return formulas.ntk(
            spec, factor * factor - (factor - 1), f"one NTK table for x {factor:g}, whatever the length"
        )
    if spec.rope_type == "longrope":
        default = formulas.longrope_temperature(spec.longest / spec.original, spec.original)
        temperature = fields.real(spec.values, "long_mscale", default)
        return formulas.lists(spec, temperature, long=spec.longest > spec.original, switches=True)
    if spec.rope_type == PROPORTIONAL:
        # The fraction comes from the model class, which looks for a top-level key.
        share = fields.real(context.inner, "partial_rotary_factor", 1.0)
        return formulas.proportional(spec, fraction=share, factor=1.0)
    return formulas.plain(spec)


def _remarks(spec: Spec, table: Rotary) -> tuple[str, ...]:
    if spec.rope_type == "yarn":
        return _YARN.remarks(spec)
    if spec.rope_type == "longrope":
        line = "attention_factor ignored for longrope: it reads short_mscale and long_mscale"
        return formulas.passed_over(spec, table.temperature, line)
    if spec.rope_type == PROPORTIONAL:
        return ("factor and the dict's partial_rotary_factor ignored for proportional",)
    return ()


def _served(found: dict[str | None, Spec]) -> int:
    """get_context_length: max_position_embeddings * factor, unless the dict holds the original length."""
    spec = next(iter(found.values()))
    if None not in found:
        return spec.longest
    factor = spec.values.get("factor")
    scaled = ORIGINAL_KEY in spec.values or spec.rope_type in _SETS_ORIGINAL
    return spec.longest if scaled or not isinstance(factor, int | float) else int(spec.longest * factor)


def serve(_context: Context, folder: str, length: int) -> str:
    """The server's command."""
    return f"python -m sglang.launch_server --model-path {folder} --context-length {length}"


ENGINES = (
    Engine(
        name="sglang",
        versions="0.5.23",
        source="sgl-project/sglang@v0.5.23:python/sglang/srt/layers/rotary_embedding/factory.py",
        read=read,
        serve=serve,
        length_setting="--context-length {n}",
        raise_setting=_FLAGS,
        classes="sglang",
        fallback="transformers",
        code="its engine replaces the attention function that the code needs, and the code stops there",
    ),
)
