"""vLLM.

Read in the released 0.23.0, 0.24.0, 0.25.1, 0.26.0, 0.27.1, 0.28.0, 0.29.0, 0.30.0, 0.31.0 and 0.32.0:
vllm/model_executor/layers/rotary_embedding/__init__.py (get_rope), the classes beside it, vllm/config/model.py
(_get_and_verify_max_len) and vllm/transformers_utils/config.py (patch_rope_parameters).

0.24 and later need transformers 5, whose config class puts the dict in order first. 0.23 also runs on transformers 4:
then `rope_scaling` counts, else `rope_parameters`, and the top-level `rope_theta` (10000 when absent) overrides the
dict's. 0.30 began to read attention_factor, mscale and mscale_all_dim, and to leave yarn out of the multiplication of
max_position_embeddings by the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ctxforge.engines import formulas
from ctxforge.engines.classes import kind_of
from ctxforge.engines.readers.transformers4 import read_last
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import PROPORTIONAL, context_specs, specs, top_level_original
from ctxforge.engines.types import Context, Engine, Reading, Rotary, Spec
from ctxforge.rope import fields
from ctxforge.rope.reader import ORIGINAL_KEY

_NEW = YarnKeys(attention_factor=True, truncate=True, mscale="pair")
_OLD = YarnKeys(truncate=True, attn_factor=True)
_ALREADY_SCALED = ("longrope", "llama3")
_GPT_OSS_KEYS = ("factor", ORIGINAL_KEY, "beta_fast", "beta_slow")
_ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"


def read_new(context: Context) -> Reading:
    """0.30 and later."""
    return _read(context, context_specs(context, "transformers 5"), _NEW, ("yarn",))


def read_middle(context: Context) -> Reading:
    """0.24 to 0.29."""
    return _read(context, context_specs(context, "transformers 5"), _OLD, ())


def read_on_transformers4(context: Context) -> Reading:
    """0.23 and earlier on transformers 4."""
    assert context.architecture is not None
    inner = context.inner
    if fields.table(inner, "rope_scaling") is None and fields.table(inner, "rope_parameters") is not None:
        modern = specs(inner, context.model_type, context.architecture, "transformers 5")
        legacy = specs(inner, context.model_type, context.architecture, "transformers 4")
        nested = context.architecture.nested
        found = modern if nested else {key: replace(spec, base=legacy[key].base) for key, spec in modern.items()}
    else:
        found = context_specs(context, "transformers 4")
    reading = _read(context, found, _OLD, ())
    if kind_of("vllm", context.class_name) == "transformers" and reading.tables:
        return replace(reading, tables=read_last(context).tables)
    return reading


def _read(context: Context, found: Mapping[str | None, Spec], keys: YarnKeys, unscaled: tuple[str, ...]) -> Reading:
    if kind_of("vllm", context.class_name) == "own":
        found = {key: replace(spec, values=_for_gpt_oss(spec)) for key, spec in found.items()}
        missing = [key for key in _GPT_OSS_KEYS for spec in found.values() if spec.values.get(key) is None]
        if missing or any(spec.rope_type != "yarn" for spec in found.values()):
            return Reading(refusal="its GptOss class takes a yarn dict with betas and nothing else")
    if kind_of("vllm", context.class_name) == "transformers":
        served = _served(context, found, unscaled)
        return Reading(dict(context.meant), served, notes=("runs transformers' own model code",))
    tables: dict[str | None, Rotary] = {}
    remarks: list[str] = []
    for layer_type, spec in found.items():
        refusal = _refusal(spec)
        if refusal is not None:
            return Reading(refusal=refusal)
        tables[layer_type] = _table(context, spec, keys)
        remarks += _remarks(spec, tables[layer_type], keys)
    return Reading(tables, _served(context, found, unscaled), tuple(remarks))


def _for_gpt_oss(spec: Spec) -> dict[str, object]:
    """vllm/model_executor/models/gpt_oss.py hands on these keys only."""
    return {key: spec.values[key] for key in (*_GPT_OSS_KEYS, "truncate") if key in spec.values}


def _refusal(spec: Spec) -> str | None:
    if spec.rope_type not in _FORMULAS:
        return f"ValueError: unknown RoPE scaling type {spec.rope_type}"
    if spec.rope_type == PROPORTIONAL and not spec.values.get("partial_rotary_factor", 1.0):
        return "ValueError: partial_rotary_factor must be above 0"
    modern, legacy = spec.values.get("rope_type"), spec.values.get("type")
    if modern and legacy and modern != legacy and (legacy, modern) != ("su", "longrope"):
        return "ValueError: rope_type and type contradict each other"
    return None


def _table(context: Context, spec: Spec, keys: YarnKeys) -> Rotary:
    if spec.rope_type == "yarn":
        return keys.table(spec)
    return _FORMULAS[spec.rope_type](context, spec)


def _dynamic(_context: Context, spec: Spec) -> Rotary:
    """dynamic_ntk_scaling_rope.py: base * (factor * max/max_trained - (factor - 1))^..., and max_trained defaults to
    max, so that the base stays; the table ends at max_position_embeddings.
    """
    trained = fields.integer(spec.values, "max_trained_positions", spec.longest, high=2**40)
    factor = formulas.yarn_factor(spec)
    growth = factor * spec.longest / trained - (factor - 1)
    return formulas.ntk(spec, growth, f"no dynamic scaling: a table of {spec.longest} positions")


def _longrope(context: Context, spec: Spec) -> Rotary:
    """phi3_long_rope_scaled_rope.py: one list for the server's whole life, the long one when max_model_len > L0."""
    long = context.target > spec.original
    default = formulas.longrope_temperature(spec.longest / spec.original, spec.original)
    key = "long_mscale" if long else "short_mscale"
    return formulas.lists(spec, fields.real(spec.values, key, default), long=long)


def _proportional(_context: Context, spec: Spec) -> Rotary:
    return formulas.proportional(spec, factor=1.0)


def _plain(_context: Context, spec: Spec) -> Rotary:
    return formulas.plain(spec)


def _linear(_context: Context, spec: Spec) -> Rotary:
    return formulas.linear(spec)


def _llama3(_context: Context, spec: Spec) -> Rotary:
    return formulas.llama3(spec)


_FORMULAS: dict[str, Callable[[Context, Spec], Rotary]] = {
    "default": _plain,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _plain,
    "dynamic": _dynamic,
    "longrope": _longrope,
    PROPORTIONAL: _proportional,
}


def _remarks(spec: Spec, table: Rotary, keys: YarnKeys) -> tuple[str, ...]:
    if spec.rope_type == "yarn":
        return keys.remarks(spec)
    if spec.rope_type == "longrope":
        line = "attention_factor ignored for longrope: it reads short_mscale and long_mscale"
        return formulas.passed_over(spec, table.temperature, line)
    if spec.rope_type == PROPORTIONAL and spec.values.get("factor") is not None:
        return ("factor ignored for proportional",)
    return ()


def _served(context: Context, found: Mapping[str | None, Spec], unscaled: tuple[str, ...]) -> int:
    """max_model_len as derived: see _get_and_verify_max_len."""
    length = next(iter(found.values())).longest
    if "gemma3" not in context.model_type:
        for spec in found.values():
            if spec.rope_type in (*_ALREADY_SCALED, *unscaled):
                continue
            if spec.rope_type == "yarn":
                length = spec.original
            factor = spec.values.get("factor")
            if isinstance(factor, int | float):
                return int(length * factor)
    assert context.architecture is not None
    original = top_level_original(context.inner, context.architecture)
    if original is not None and any(spec.rope_type == "longrope" for spec in found.values()):
        return original
    return length


def serve(_context: Context, folder: str, length: int) -> str:
    """The command of the OpenAI-compatible server."""
    return f"vllm serve {folder} --max-model-len {length}"


def _engine(versions: str, tag: str, read: Callable[[Context], Reading], run: str | None = None) -> Engine:
    return Engine(
        name="vllm",
        versions=versions,
        source=f"vllm-project/vllm@{tag}:vllm/model_executor/layers/rotary_embedding/__init__.py",
        read=read,
        serve=serve,
        length_setting="--max-model-len {n}",
        raise_setting=_ALLOW_LONG,
        classes="vllm",
        fallback="transformers",
        code="its engine replaces the attention function that the code needs, and the code stops there",
        runs=None if run is None else ("vllm", run),
    )


ENGINES = (
    _engine("0.30 and later", "v0.32.0", read_new, "vllm 0.3"),
    _engine("0.24 - 0.29", "v0.29.0", read_middle),
    _engine("0.23 and earlier, with transformers 4", "v0.23.0", read_on_transformers4),
)
