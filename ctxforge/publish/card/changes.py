"""What a conversion changed and why, as a template shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import CtxforgeError
from ctxforge.lengths import format_length
from ctxforge.publish.card.markdown import Markdown, code, fenced, table
from ctxforge.publish.card.record import Record
from ctxforge.rope.geometry import text_config
from ctxforge.verification.html import numbers, tables
from ctxforge.verification.html.figures import labelled
from ctxforge.verification.html.rotation import RotaryTable

_KEYS = (
    *("max_position_embeddings", "n_positions", "rope_theta", "rope_scaling", "rope_parameters"),
    *("original_max_position_embeddings", "sliding_window", "layer_types", "model_type", "auto_map", "ctxforge"),
)
_LONGEST_LIST = 8


@dataclass(frozen=True)
class Explained:
    """A method, a modifier or an attachment as its registry explains it; of an unknown one, the name alone."""

    name: str
    title: str
    reference: str
    summary: str
    can: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()
    cost: str = ""
    needs: str = ""


def explain_method(name: str) -> tuple[Explained, ...]:
    """`yarn+resonance` as its parts; empty where RoPE was left alone."""
    from ctxforge.rope.methods import find_method
    from ctxforge.rope.modifiers import MODIFIERS

    parts = [part for part in name.split("+") if part and part != "none"]
    found = []
    for part in parts:
        if part in MODIFIERS:
            one = MODIFIERS[part]
            found.append(Explained(part, one.title, one.reference, one.summary, cannot=one.costs))
            continue
        try:
            method = find_method(part)
        except CtxforgeError:
            found.append(Explained(part, part, "", ""))
            continue
        needs = method.needs_training if method.needs == "calibration" else ""
        found.append(Explained(part, method.title, method.reference, method.summary, cannot=method.costs, needs=needs))
    return tuple(found)


def explain_attachment(name: str | None) -> Explained | None:
    """The attention system; None without one."""
    from ctxforge.attention.registry import find_attachment

    if name is None:
        return None
    try:
        one = find_attachment(name)
    except CtxforgeError:
        return Explained(name, name, "", "")
    needs = "" if one.needs == "nothing" else f"It needs {one.needs} before its result is worth using."
    return Explained(name, one.title, one.reference, one.summary, one.can, one.cannot, one.cost, needs)


def parameters(found: Mapping[str, Any]) -> Markdown:
    """`key=value` each as code, unset ones left out; a path without its folders."""
    shown = [f"{key}={_short(value)}" for key, value in found.items() if value is not None]
    return Markdown(", ".join(code(entry) for entry in shown))


def temperatures(record: Record) -> list[str]:
    """A line on the temperature of every table that was changed; none where it is 1."""
    lines = []
    for one in record.changed:
        if one.temperature == 1.0 and one.layer_type not in record.folded:
            continue
        where = f" of {one.layer_type} layers" if one.layer_type else ""
        a = one.temperature
        words = f"Temperature a{where}: {a:.6g} on cos and sin, so q·k is multiplied by a² = {a * a:.6g}"
        factor = record.folded.get(one.layer_type)
        if factor is not None:
            words += f"; a factor of {factor:.6g} of that is in the query weights, because engines disagree on its key"
        lines.append(words + ".")
    return lines


def rotation_table(record: Record) -> Markdown:
    """The rotary tables in figures; empty without any."""
    found = tables.rotation(record.changed)
    return table(found.header, found.rows)


def pair_table(record: Record) -> Markdown:
    """Lambda of every pair; empty without any table."""
    changed: list[RotaryTable] = list(record.changed)
    found = tables.lambda_by_pair(labelled(record.method, changed))
    return table(found.header, found.rows, numeric=True)


def config_keys(config: Mapping[str, Any]) -> Markdown:
    """The part of config.json that says where positions are, long lists cut."""
    try:
        _name, inner = text_config(config)
    except CtxforgeError:
        inner = config
    holder = {**{key: inner[key] for key in _KEYS if key in inner}, **{k: config[k] for k in _KEYS if k in config}}
    shown = {key: _cut(holder[key]) for key in _KEYS if holder.get(key) is not None}
    return fenced(json.dumps(shown, indent=2, ensure_ascii=True), "json") if shown else Markdown("")


def tensors(record: Record) -> Markdown:
    """How many tensors were edited, by name with the layer's number left open; empty where none was."""
    counted: dict[str, int] = {}
    for name in record.tensors_edited:
        pattern = re.sub(r"(?<=\.)[0-9]+(?=\.)", "N", name)
        counted[pattern] = counted.get(pattern, 0) + 1
    return Markdown(", ".join(f"{count} x {code(pattern)}" for pattern, count in counted.items()))


def lengths(record: Record) -> tuple[str, str, str]:
    """L0, L' and s in words; empty where they are not recorded."""
    before, after, scale = record.original_length, record.target_length, record.scale
    return (
        _length(before),
        _length(after),
        "" if scale is None else numbers.number(scale, 4),
    )


def _length(tokens: int | None) -> str:
    if tokens is None:
        return ""
    short = format_length(tokens)
    return f"{tokens} tokens" if short == str(tokens) else f"{short} ({tokens}) tokens"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{len(value)} numbers]" if len(value) > _LONGEST_LIST else json.dumps(list(value))
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return value.rsplit("/", 1)[-1]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _cut(entry) for key, entry in value.items()}
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        return f"... {len(value)} values ..."
    return value
