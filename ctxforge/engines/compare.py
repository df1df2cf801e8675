"""What an engine computes against what is meant, in one line."""

from __future__ import annotations

import math

from ctxforge.engines.types import Reading, Rotary, Tables

TOLERANCE = 1e-6
# Radians per token: slower than this, a pair turns by less than float32 resolves within any length.
_STILL = 1e-20


def difference(meant: Tables, reading: Reading) -> str | None:
    """How a reading's tables differ from the meant ones; None when frequencies and temperature agree to 1e-6."""
    lines = []
    for layer_type, table in meant.items():
        found = reading.tables.get(layer_type)
        line = "no rotation" if found is None else _table_difference(table, found)
        if line is not None:
            lines.append(f"{layer_type}: {line}" if layer_type else line)
    if not lines:
        return None
    return "; ".join((*lines, *dict.fromkeys(reading.remarks)))


def _table_difference(meant: Rotary, found: Rotary) -> str | None:
    if found.dims != meant.dims:
        return f"rotates {found.dims} dimensions of a head instead of {meant.dims}"
    if _worst(found, meant) > TOLERANCE or found.follows != meant.follows:
        return _frequencies(meant, found)
    if abs(found.temperature - meant.temperature) > TOLERANCE:
        return f"temperature {found.temperature:.5g} instead of {meant.temperature:.5g}"
    if abs(found.softmax_scale / meant.softmax_scale - 1) > TOLERANCE:
        return f"softmax scaled by {found.softmax_scale:.5g} instead of {meant.softmax_scale:.5g}"
    return None


def _worst(one: Rotary, other: Rotary) -> float:
    return max(_relative(a, b) for a, b in zip(one.frequencies, other.frequencies, strict=True))


def _relative(read: float, wanted: float) -> float:
    if abs(read) < _STILL and abs(wanted) < _STILL:
        return 0.0
    return math.inf if wanted == 0 else abs(read / wanted - 1)


def _frequencies(meant: Rotary, found: Rotary) -> str:
    computes, wanted = _words(found), _words(meant)
    if computes == wanted:
        return f"{computes} with other frequencies: up to {_ratio(meant, found)} apart"
    return f"{computes} instead of {wanted}"


def _ratio(meant: Rotary, found: Rotary) -> str:
    worst = _worst(found, meant)
    return "without bound" if math.isinf(worst) else f"{worst:.2g} relative"


def _words(table: Rotary) -> str:
    heat = f", temperature {table.temperature:.5g}" if table.temperature != 1.0 else ""
    return f"theta {table.base:.9g} and {table.follows or table.scaling}{heat}"
