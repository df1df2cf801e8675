"""A line chart: curves with their intervals as bands, told apart by colour, dashes and the shape of their points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctxforge.verification.end_labels import End, end_labels, end_width
from ctxforge.verification.svg import NARROW, SERIES, document, footnote, line, text, text_width

# Patterns and shapes tell lines apart where colours run out or cannot be seen.
_DASHES = ("", "8 5", "2 5", "10 4 2 4")
_SHAPES = ("circle", "square", "diamond", "triangle")
_ROW = 22.0
REFERENCE, BASE = -1, -2


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: in the legend.
        xs, ys: its points.
        lows, highs: bounds of the values, drawn as a band; None where there is no interval.
        points: whether the points are drawn on the line.
        slot: number of its colour, dashes and shape; None for the line's place among the others, `REFERENCE` for a
            thin grey line that others are held against, `BASE` for the model as it was, in the colour of the text.
        thin: whether it steps back behind the others.
    """

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float, ...] | None = None
    highs: tuple[float, ...] | None = None
    points: bool = True
    slot: int | None = None
    thin: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; `ticks` are values with their labels."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where the value lies, 0 at `low` and 1 at `high`; held inside."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Mark:
    """A vertical dashed line at `x` with a label."""

    x: float
    label: str


def chart_svg(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str,
    marks: Sequence[Mark] = (),
    width: float = 780.0,
    heading: bool = True,
    ends: bool = False,
    note: str = "",
) -> str:
    """A self-contained SVG of `series`, in the legend's order.

    Args:
        series: the lines; every value drawn is finite.
        x: horizontal axis.
        y: vertical axis.
        title: above the chart and for screen readers.
        description: the numbers in words, for screen readers.
        marks: vertical lines; those outside of the axis are left out.
        width: in pixels. `NARROW` fits a phone.
        heading: whether the title is drawn; it is always there for screen readers.
        ends: name the lines beside their ends instead of in a legend, where there is room for that.
        note: below the chart, where there is a heading and room.
    """
    narrow = width <= NARROW
    beside = end_width([entry.label for entry in series]) if ends and not narrow else None
    left, right = (46.0, 12.0) if narrow else (64.0, 24.0 if beside is None else beside + 8.0)
    first = (52.0 if heading else 22.0) if not narrow or heading else 20.0
    slots = [number if entry.slot is None else entry.slot for number, entry in enumerate(series)]
    labels = [entry.label for entry in series] if beside is None else []
    legend, rows = _legend(labels, slots[: len(labels)], left if not narrow else 8.0, width - 8.0, first)
    top = first + _ROW * rows + 18.0
    floor = top + (230.0 if narrow else 300.0)
    below = footnote(note, floor + 62, width, shown=heading)
    height = floor + 54.0

    def at_x(value: float) -> float:
        return left + (width - left - right) * x.share(value)

    def at_y(value: float) -> float:
        return floor - (floor - top) * y.share(value)

    parts = [text(8.0, 28, title, css="title")] if heading else []
    parts += [*legend, text(8.0, top - 16, y.title, css="small soft")]
    for value, label in y.ticks:
        parts.append(line(left, at_y(value), width - right, at_y(value), "grid"))
        parts.append(text(left - 7, at_y(value) + 4.5, label, css="small soft", anchor="end"))
    for value, label in x.ticks:
        parts.append(line(at_x(value), floor, at_x(value), floor + 5, "axis"))
        # The last label would reach over the edge.
        over = at_x(value) + text_width(label, 12) / 2 > width - 2
        place, anchor = (width - 2, "end") if over else (at_x(value), "middle")
        parts.append(text(place, floor + 20, label, css="small soft", anchor=anchor))
    parts.append(line(left, floor, width - right, floor, "axis"))
    parts.append(text((left + width - right) / 2, height - 12, x.title, css="small" if narrow else "", anchor="middle"))
    for number, entry in zip(slots, series, strict=True):
        parts.append(band_of(number, [(at_x(a), at_y(b), at_y(c)) for a, b, c in bounds_of(entry)]))
    inside = [mark for mark in marks if x.low < mark.x <= x.high]
    parts += [line(at_x(mark.x), top - 6, at_x(mark.x), floor, "mark") for mark in inside]
    # What steps back is drawn first.
    for number, entry in sorted(zip(slots, series, strict=True), key=lambda pair: not pair[1].thin):
        placed = [(at_x(a), at_y(b)) for a, b in zip(entry.xs, entry.ys, strict=True)]
        parts.append(line_of(number, placed, points=entry.points, thin=entry.thin))
    if beside is not None:
        last = [
            End(at_x(entry.xs[-1]), at_y(entry.ys[-1]), entry.label, _sampler(number))
            for number, entry in zip(slots, series, strict=True)
            if entry.xs
        ]
        parts += end_labels(last, width - right, top, floor)
    for row, mark in enumerate(inside):
        at = at_x(mark.x)
        fits = at + 7 + text_width(mark.label, 12) <= width - 4
        place, anchor = (at + 7, "start") if fits else (at - 7, "end")
        parts.append(text(place, top + 6 + 16 * row, mark.label, css="small halo", anchor=anchor))
    frame = height + 18 * len(below)
    return document(width, frame, title, description, [part for part in (*parts, *below) if part])


def linear_ticks(end: float, most: int = 8) -> list[int]:
    """Up to `most` + 1 whole positions from 0, at a power of two apart."""
    step = 1
    while end / step > most:
        step *= 2
    return [step * i for i in range(int(end / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: the densest of the usual series that stays at eight or fewer."""
    series: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), _EVERY)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for steps in series:
        ticks = [t for d in decades for s in steps if low <= (t := float(f"{s * 10.0**d:.6g}")) <= high]
        if len(ticks) <= 8 or not best:
            best = ticks
    # Over hundreds of decades even one tick a decade is too many.
    return best[:: 1 + (len(best) - 1) // 8]


def tick_label(value: float) -> str:
    """Short at any size: `0.5`, `300`, `3e7`."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


_EVERY = tuple(i / 10 for i in range(10, 100))


def bounds_of(entry: Series) -> list[tuple[float, float, float]]:
    """(x, low, high) of every point; empty where there are no bounds."""
    if entry.lows is None or entry.highs is None:
        return []
    return list(zip(entry.xs, entry.lows, entry.highs, strict=True))


def band_of(number: int, bounds: list[tuple[float, float, float]]) -> str:
    """The band through (x, low, high), in pixels; a bar where it is a single point."""
    if not bounds:
        return ""
    if len(bounds) == 1:
        x, low, high = bounds[0]
        return line(x, low, x, high, _stroke(number))
    around = [(x, high) for x, _, high in bounds] + [(x, low) for x, low, _ in reversed(bounds)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in around)
    return f'<polygon points="{path}" class="band {_fill(number)}"/>'


def line_of(number: int, placed: list[tuple[float, float]], *, points: bool, thin: bool = False) -> str:
    """The line of slot `number` through points in pixels."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = "".join(point_of(number, x, y) for x, y in placed) if points else ""
    stroke = f'<polyline points="{path}" class="{_stroke(number)}{" thin" if thin else ""}"{_dash(number)}/>'
    return f'<g data-series="{number}">{stroke}{dots}</g>'


def _sampler(number: int) -> Callable[[float, float], str]:
    return lambda x, y: _sample(number, x, y, 24)


def _sample(number: int, x: float, y: float, wide: float) -> str:
    piece = f'<path d="M{x:.1f} {y:.1f}h{wide:g}" class="{_stroke(number)}"{_dash(number)}/>'
    return piece if number == REFERENCE else piece + "\n" + point_of(number, x + wide / 2, y)


def _legend(labels: list[str], slots: list[int], left: float, right: float, first: float) -> tuple[list[str], int]:
    """Legend entries in rows whose first has its baseline at `first`, and how many rows they took."""
    parts: list[str] = []
    x, row = left, 0
    longest = max(12, int((right - left - 33) / 7.8))
    for number, label in zip(slots, labels, strict=True):
        shown = label if len(label) <= longest else label[: longest - 1] + "…"
        width = 54 + text_width(shown)
        if x > left and x + width - 16 > right:
            x, row = left, row + 1
        y = first + _ROW * row
        parts.append(_sample(number, x, y - 4.5, 26))
        parts.append(text(x + 33, y, shown))
        x += width
    return parts, row + 1 if labels else 0


def point_of(number: int, x: float, y: float) -> str:
    """The point of slot `number` at a place in pixels; hollow for `BASE`."""
    if number == BASE:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" class="hollow"/>'
    css, shape = f'class="{_fill(number)}"', _SHAPES[_pattern(number)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" {css}/>'
    if shape == "square":
        return f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" {css}/>'
    steps = {"diamond": "v-4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4l4.4 -4.4", "triangle": "v-4.4l4.4 7.6h-8.8l4.4 -7.6"}[shape]
    return f'<path d="M{x:.1f} {y:.1f}{steps}z" {css}/>'


def _stroke(number: int) -> str:
    names = {REFERENCE: "curve reference", BASE: "curve base"}
    return names.get(number) or f"curve s{number % SERIES}"


def _fill(number: int) -> str:
    return "ink" if number < 0 else f"d{number % SERIES}"


def _pattern(number: int) -> int:
    """Number of the dashes and of the shape; where a colour comes round again, both have moved on."""
    return (number + number // SERIES) % len(_SHAPES)


def _dash(number: int) -> str:
    pattern = "" if number < 0 else _DASHES[_pattern(number)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""
