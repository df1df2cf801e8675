"""Perplexity by position as a picture: one line a model, the trained length marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.lengths import format_length
from ctxforge.verification.measure import Measures
from ctxforge.verification.report import VerifyReport
from ctxforge.verification.svg import SERIES, document, line, text

_WIDTH, _HEIGHT = 780.0, 460.0
_LEFT, _RIGHT, _BOTTOM = 70.0, 24.0, 58.0
# Patterns tell lines apart where colours run out or cannot be seen.
_DASHES = ("", "8 4", "2 4", "10 3 2 3")


@dataclass(frozen=True)
class Curve:
    """One line of the plot: perplexity `values` at token `positions` (the middle of each bucket)."""

    label: str
    positions: tuple[float, ...]
    values: tuple[float, ...]


def curve_of(measures: Measures, label: str | None = None) -> Curve:
    """The perplexity of `measures` by position, at the middle of each bucket."""
    return Curve(
        label or measures.label,
        tuple((bucket.start + bucket.end) / 2 for bucket in measures.buckets),
        tuple(bucket.ppl for bucket in measures.buckets),
    )


def curves_of(report: VerifyReport) -> list[Curve]:
    """The lines of a report: the source where it was measured, and the result."""
    models = [report.result] if report.source is None else [report.source, report.result]
    return [curve_of(model) for model in models if model.buckets]


def plot_svg(
    curves: Sequence[Curve],
    trained_length: int,
    *,
    target_length: int | None = None,
    title: str = "Perplexity by position",
) -> str:
    """A self-contained SVG of `curves` on a logarithmic perplexity axis.

    Args:
        curves: one line a model or method; points whose value is not a positive finite number are left out.
        trained_length: marked by a vertical dashed line, in tokens.
        target_length: right end of the axis; None for a little beyond the last point.
        title: above the plot.

    Raises:
        UsageError: no curve has a point to draw.
    """
    drawn = [(curve.label, _points(curve)) for curve in curves]
    values = [y for _, points in drawn for _, y in points]
    if not values:
        raise UsageError("there is no finite perplexity to plot.", "Measure at least one model first.")
    legend, rows = _legend([label for label, _ in drawn])
    top = 62.0 + 22.0 * rows
    height = _HEIGHT + 22.0 * (rows - 1)
    end = float(target_length or max(x for _, points in drawn for x, _ in points) * 1.05)
    low, high = min(values), max(values)
    # At least a factor of 2 between the ends: noise of a few per cent should not look like a collapse.
    low, high = (low / 1.12, high * 1.12) if high / low > 2 else (low / 1.6, high * 1.6)

    def at_x(position: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * position / end

    def at_y(value: float) -> float:
        share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return height - _BOTTOM - share * (height - _BOTTOM - top)

    floor = height - _BOTTOM
    parts = [text(_LEFT, 28, title, css="title"), *legend]
    for tick in _log_ticks(low, high):
        parts.append(line(_LEFT, at_y(tick), _WIDTH - _RIGHT, at_y(tick), "grid"))
        parts.append(text(_LEFT - 8, at_y(tick) + 4.5, f"{tick:g}", css="small soft", anchor="end"))
    for position in _ticks(end):
        parts.append(line(at_x(position), floor, at_x(position), floor + 5, "axis"))
        parts.append(text(at_x(position), floor + 20, format_length(position), css="small soft", anchor="middle"))
    parts.append(line(_LEFT, floor, _WIDTH - _RIGHT, floor, "axis"))
    parts.append(text((_LEFT + _WIDTH - _RIGHT) / 2, height - 14, "position in the text (tokens)", anchor="middle"))
    parts.append(text(18, (top + floor) / 2, "perplexity (log scale)", anchor="middle", turn=-90))
    if 0 < trained_length <= end:
        x = at_x(trained_length)
        parts.append(line(x, top - 6, x, floor, "mark"))
        side, anchor = (x - 7, "end") if trained_length > end / 2 else (x + 7, "start")
        parts.append(text(side, top + 5, f"trained length {format_length(trained_length)}", css="small", anchor=anchor))
    for number, (_, points) in enumerate(drawn):
        parts.append(_line_of(number, [(at_x(x), at_y(y)) for x, y in points]))
    described = "; ".join(f"{label}: " + ", ".join(f"{y:.2f}" for _, y in points) for label, points in drawn)
    return document(_WIDTH, height, title, described, parts)


def _points(curve: Curve) -> list[tuple[float, float]]:
    pairs = zip(curve.positions, curve.values, strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(y) and y > 0]


def _line_of(number: int, points: list[tuple[float, float]]) -> str:
    series = number % SERIES
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" class="d{series}"/>' for x, y in points)
    return f'<g data-series="{number}"><polyline points="{path}" class="curve s{series}"{_dash(number)}/>{dots}</g>'


def _legend(labels: list[str]) -> tuple[list[str], int]:
    """Legend entries in rows below the title, and how many rows they took."""
    parts: list[str] = []
    x, row = _LEFT, 0
    for number, label in enumerate(labels):
        shown = label if len(label) <= 60 else label[:59] + "…"
        width = 56 + 7.6 * len(shown)
        if x > _LEFT and x + width > _WIDTH - _RIGHT:
            x, row = _LEFT, row + 1
        y = 52 + 22 * row
        series = number % SERIES
        parts.append(f'<path d="M{x:.1f} {y - 4.5:.1f}h26" class="curve s{series}"{_dash(number)}/>')
        parts.append(f'<circle cx="{x + 13:.1f}" cy="{y - 4.5:.1f}" r="3.2" class="d{series}"/>')
        parts.append(text(x + 33, y, shown))
        x += width
    return parts, row + 1


def _dash(number: int) -> str:
    pattern = _DASHES[number // SERIES % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _ticks(end: float) -> list[int]:
    """Up to eight positions at a power of two times a whole number, from 0."""
    step = 1
    while end / step > 8:
        step *= 2
    return [step * i for i in range(int(end / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: the densest of the usual series that stays at eight or fewer."""
    series: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), _EVERY)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for steps in series:
        ticks = [t for d in decades for s in steps if low <= (t := float(f"{s * 10.0**d:.6g}")) <= high]
        if len(ticks) <= 8 or not best:
            best = ticks
    return best


_EVERY = tuple(i / 10 for i in range(10, 100))
