"""ExLlamaV3.

Read in the released 1.6.5: exllamav3/util/rope.py (RoPE), exllamav3/model/config.py (read_rope_settings_default) and
exllamav3/architecture/*.py. It reads config.json by key: `rope_theta`, else `rope_parameters.rope_theta`, else 10000;
and the first of `rope_scaling` and `rope_parameters` as the dict.
"""

from __future__ import annotations

from dataclasses import replace

from ctxforge.engines import formulas
from ctxforge.engines.readers.yarn_keys import YarnKeys
from ctxforge.engines.standard import PROPORTIONAL, context_specs
from ctxforge.engines.types import Context, Engine, Reading, Rotary, Spec
from ctxforge.rope import fields
from ctxforge.rope.reader import ORIGINAL_KEY

_YARN = YarnKeys(attention_factor=True, truncate=True, ratio=True)
_GEMMA3_BASE = 1_000_000.0
_LOCAL_BASE = 10000.0


def read(context: Context) -> Reading:
    """1.6.5."""
    legacy, modern = fields.table(context.inner, "rope_scaling"), fields.table(context.inner, "rope_parameters")
    values = dict(legacy or modern or {})
    tables: dict[str | None, Rotary] = {}
    remarks: list[str] = []
    for layer_type, spec in context_specs(context, "transformers 5").items():
        if layer_type == "sliding_attention":
            tables[layer_type] = formulas.plain(spec, base=_LOCAL_BASE)
            continue
        default = 10000.0 if layer_type is None else _GEMMA3_BASE
        base = fields.real(context.inner, "rope_theta", fields.real(modern or {}, "rope_theta", default))
        name = str(values.get("rope_type") or values.get("type") or "default")
        spec = replace(spec, base=base, values=values, rope_type={"su": "longrope"}.get(name, name))
        if spec.rope_type not in _FORMULAS:
            return Reading(refusal=f"ValueError: unknown rope_type {spec.rope_type}")
        tables[layer_type] = _FORMULAS[spec.rope_type](context, spec)
        remarks += _remarks(spec, tables[layer_type], nested=layer_type is not None)
    return Reading(tables, remarks=tuple(remarks))


def _longrope(context: Context, spec: Spec) -> Rotary:
    """One list for as long as the model is loaded; the temperature from max / original and no key."""
    fallback = context.inner.get(ORIGINAL_KEY)
    original = fields.integer(spec.values, ORIGINAL_KEY, fallback or spec.original, high=2**40, low=2)
    temperature = formulas.longrope_temperature(spec.longest / original, original)
    return formulas.lists(spec, temperature, long=spec.longest > original)


def _yarn(_context: Context, spec: Spec) -> Rotary:
    original = fields.integer(spec.values, ORIGINAL_KEY, spec.longest, high=2**40, low=2)
    keys = replace(_YARN, ratio=spec.values.get(ORIGINAL_KEY) is not None)
    return keys.table(replace(spec, original=original))


def _llama3(_context: Context, spec: Spec) -> Rotary:
    return formulas.llama3(spec, original=fields.integer(spec.values, ORIGINAL_KEY, 8192, high=2**40, low=2))


def _proportional(context: Context, spec: Spec) -> Rotary:
    share = context.inner.get("partial_rotary_factor", spec.values.get("partial_rotary_factor", 1.0))
    return formulas.proportional(spec, fraction=fields.real({"p": share}, "p", 1.0, low=-1.0))


_FORMULAS = {
    "default": lambda _context, spec: formulas.plain(spec),
    "linear": lambda _context, spec: formulas.linear(spec),
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    PROPORTIONAL: _proportional,
}


def _remarks(spec: Spec, table: Rotary, *, nested: bool) -> tuple[str, ...]:
    if spec.rope_type == "yarn":
        return _YARN.remarks(spec)
    if spec.rope_type == "longrope":
        return formulas.passed_over(spec, table.temperature, "attention_factor and the mscale keys ignored")
    if nested and "full_attention" in spec.values:
        return ("rope_parameters nested by layer type is not read",)
    return ()


def serve(_context: Context, folder: str, length: int) -> str:
    """Its own chat client; TabbyAPI serves the same loader with max_seq_len in its config."""
    return f"python examples/chat.py -m {folder} -cs {length}"


ENGINES = (
    Engine(
        name="exllamav3",
        versions="1.6.5",
        source="turboderp-org/exllamav3@v1.6.5:exllamav3/util/rope.py",
        read=read,
        serve=serve,
        classes="exllamav3",
        code="AssertionError: unknown architecture",
    ),
)
