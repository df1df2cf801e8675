"""Numbers as the report writes them. A number that does not exist is a dash, never an empty cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ctxforge.lengths import format_length
from ctxforge.verification.statistics import Interval

NONE = "–"


def number(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:.{digits}g}"


def estimate(value: float, digits: int = 3) -> str:
    """As `number`, with the zeros at the end that say how exact it is."""
    if math.isfinite(value) and 1e-4 <= abs(value) < 10**digits:
        return f"{value:#.{digits}g}".removesuffix(".")
    return number(value, digits)


def alike(values: Iterable[float]) -> Callable[[float], str]:
    """A writer that gives all of `values` the same decimals, so that a column of them can be read at a glance."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not 0.01 <= largest < 1000:
        return estimate
    decimals = 3 if largest < 10 else 2
    return lambda value: f"{value:.{decimals}f}" if math.isfinite(value) else number(value)


def perplexity(value: float) -> str:
    """Two decimals where they mean something."""
    return f"{value:.2f}" if math.isfinite(value) and value < 1e5 else number(value)


def nats(value: float) -> str:
    """A difference in nats a token, with its sign."""
    return f"{value:+.4f}" if math.isfinite(value) else number(value)


def percent(value: float) -> str:
    """A share of 1."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else NONE


def bounds(interval: Interval | None, write: Callable[[float], str] = estimate) -> str:
    """`low to high`, or why there is none."""
    if interval is None:
        return NONE
    if interval.bounds is None:
        return "too few" if "too few" in interval.method else "none"
    low, high = interval.bounds
    return f"{write(low)} to {write(high)}"


def shares(interval: Interval) -> str:
    """The bounds of a share of 1: `83–99 %`."""
    if interval.bounds is None:
        return bounds(interval)
    low, high = interval.bounds
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def length(tokens: int, trained_length: int) -> str:
    """A length, L0 marked."""
    return f"{format_length(tokens)}\u00a0(L0)" if tokens == trained_length else format_length(tokens)
