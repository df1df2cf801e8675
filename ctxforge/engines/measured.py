"""What runs have shown, beside what reading has: `measured.json`, which benchmarks/engines.py writes.

A row there names a form, the way in which a config expresses its rotation. `forms` names the forms that a config is of,
so that a verdict by reading can be marked as measured where a run of the same form and type came to the same.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from ctxforge.engines.formulas import longrope_temperature
from ctxforge.engines.standard import context_specs
from ctxforge.engines.types import Context, Engine, Spec, Verdict
from ctxforge.rope import fields
from ctxforge.rope.reader import ORIGINAL_KEY
from ctxforge.rope.types import UNROTATED

_SAME: dict[str, tuple[Verdict, ...]] = {
    "agrees": ("honours", "honours with flags"),
    "differs": ("computes something else",),
}


@functools.cache
def rows() -> tuple[dict[str, Any], ...]:
    """The rows of `measured.json`; empty without that file."""
    path = Path(__file__).with_name("measured.json")
    if not path.is_file():
        return ()
    document = json.loads(path.read_text(encoding="utf-8"))
    return tuple(document["rows"])


def measured(engine: Engine, context: Context, verdict: Verdict) -> tuple[str, bool] | None:
    """A run of this form and type: its version and date, and whether it agrees with `verdict`; None without one."""
    if engine.runs is None or context.scheme != "rope" or context.code is not None:
        return None
    if any(table.follows for table in context.meant.values()):
        return None  # runs end at the config's length, where such a table has not begun to change
    name, version = engine.runs
    found = forms(context)
    for row in rows():
        status = row["status"]
        if (row["engine"], row["architecture"]) != (name, context.model_type) or row["form"] not in found:
            continue
        if not str(row["version"]).startswith(version) or status not in _SAME:
            continue
        return f"{row['version']}, {row['date']}", verdict in _SAME[status]
    return None


def forms(context: Context) -> tuple[str, ...]:
    """The names of benchmarks/engine_cases.py that fit this config; those that differ in the weights alone both do."""
    spec = context_specs(context, "transformers 5").get(None)
    if spec is None:
        return ()
    suffix = _styles(context)
    if suffix:
        base = {"default": "theta", "yarn": "yarn"}.get(spec.rope_type)
        return (f"{base}, {suffix}",) if base and _is_default(spec) else ()
    if spec.rope_type == "default":
        return ("theta only",)
    if spec.rope_type in ("linear", "dynamic"):
        return (spec.rope_type,)
    if spec.rope_type == "llama3":
        return ("llama3", "llama3, folded")
    if spec.rope_type == "yarn":
        return _yarn(spec)
    return _longrope(context, spec) if spec.rope_type == "longrope" else ()


def _styles(context: Context) -> str:
    modern = fields.table(context.inner, "rope_parameters") is not None
    legacy = any(context.inner.get(key) is not None for key in ("rope_theta", "rope_scaling"))
    if modern and legacy:
        return ""
    return "new keys only" if modern else "old keys only"


def _is_default(spec: Spec) -> bool:
    values = spec.values
    return values.get("attention_factor") is None and values.get("truncate") is not False and not values.get("mscale")


def _yarn(spec: Spec) -> tuple[str, ...]:
    if _is_default(spec):
        return ("yarn", "yarn, folded")
    if spec.values.get("mscale"):
        return ()
    untruncated, hot = spec.values.get("truncate") is False, spec.values.get("attention_factor") is not None
    if untruncated and hot:
        return ()
    return ("yarn, truncate false",) if untruncated else ("yarn, exact",)


def _longrope(context: Context, spec: Spec) -> tuple[str, ...]:
    values = spec.values
    if values.get("short_factor") != values.get("long_factor"):
        return ("longrope, two lists",)
    if context.inner.get(ORIGINAL_KEY) is not None:
        return ("longrope, top-level length",)
    if values.get("long_mscale") is not None:
        return ("longrope, exact",)
    factor = values.get("attention_factor")
    if factor is None:
        return ("longrope, no temperature",)
    default = longrope_temperature(spec.longest / spec.original, spec.original)
    if abs(float(factor) - default) > 1e-9:
        return ("longrope, attention_factor",)
    unrotated = any(divisor == UNROTATED for divisor in values.get("long_factor", ()))
    return ("unrotated pairs",) if unrotated else ("longrope, folded",)
