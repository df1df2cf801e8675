"""Small multiples: a panel a method, its line and interval in front of everybody else's in grey.

Intervals of eight methods in one chart hide each other; a panel each needs no legend, no colours and no guessing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctxforge.verification.chart import BASE, Axis, Series, band_of, bounds_of, line_of
from ctxforge.verification.svg import NARROW, document, footnote, line, text, text_width

_HIGH, _GAP, _TITLE, _TICKS = 112.0, 16.0, 24.0, 30.0


def panels_svg(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str,
    mark: float | None,
    width: float,
    heading: bool = True,
    note: str = "",
) -> str:
    """A self-contained SVG with a panel for every one of `series`, all on the same axes.

    Args:
        series: the lines with their slots.
        x: horizontal axis; of its ticks as many are drawn as fit.
        y: vertical axis; few ticks.
        title: above the picture and for screen readers.
        description: the numbers in words, for screen readers.
        mark: x of a dashed line in every panel; None for none.
        width: in pixels; `NARROW` puts two panels in a row, otherwise there are four.
        heading: whether the title is drawn.
        note: below the panels, where there is a heading and room.
    """
    columns = 2 if width <= NARROW else min(4, len(series))
    left, right = 40.0, 14.0
    wide = (width - left - right - _GAP * (columns - 1)) / columns
    top = 64.0 if heading else 30.0
    step = _TITLE + _HIGH + _TICKS
    rows = -(-len(series) // columns)
    parts = [text(8.0, 28, title, css="title")] if heading else []
    parts.append(text(8.0, top - 14, y.title, css="small soft"))
    for number, entry in enumerate(series):
        column, row = number % columns, number // columns
        frame = (left + column * (wide + _GAP), top + row * step + _TITLE, wide)
        parts += _panel(entry, series, x, y, frame, mark=mark, labelled=column == 0)
    height = top + rows * step + 22.0
    parts.append(text((left + width - right) / 2, height - 12, x.title, css="small", anchor="middle"))
    below = footnote(note, height + 8, width, shown=heading)
    return document(width, height + 18 * len(below), title, description, [*parts, *below])


def _panel(
    entry: Series,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    frame: tuple[float, float, float],
    *,
    mark: float | None,
    labelled: bool,
) -> list[str]:
    left, top, wide = frame
    floor = top + _HIGH

    def at(a: float, b: float) -> tuple[float, float]:
        return left + wide * x.share(a), floor - _HIGH * y.share(b)

    longest = max(4, int(wide / 7.8))
    name = entry.label if len(entry.label) <= longest else entry.label[: longest - 1] + "…"
    parts = [text(left, top - 8, name, css="small strong")]
    for value, label in y.ticks:
        height = at(x.low, value)[1]
        parts.append(line(left, height, left + wide, height, "grid"))
        if labelled:
            parts.append(text(left - 6, height + 4.5, label, css="small soft", anchor="end"))
    parts.append(line(left, floor, left + wide, floor, "axis"))
    ticks = [(at(value, y.low)[0], label) for value, label in x.ticks]
    for place, middle, label in fitting(ticks, left - 4, left + wide + 4):
        parts.append(line(place, floor, place, floor + 4, "axis"))
        parts.append(text(middle, floor + 17, label, css="small soft", anchor="middle"))
    if mark is not None and x.low < mark < x.high:
        parts.append(line(at(mark, y.low)[0], top, at(mark, y.low)[0], floor, "mark"))
    slot = entry.slot or 0
    for other in series:
        if other is not entry:
            path = " ".join("{:.1f},{:.1f}".format(*at(a, b)) for a, b in zip(other.xs, other.ys, strict=True))
            parts.append(f'<polyline points="{path}" class="{"leader" if other.slot == BASE else "others"}"/>')
    bounds = [(at(a, low)[0], at(a, low)[1], at(a, high)[1]) for a, low, high in bounds_of(entry)]
    parts.append(band_of(slot, bounds))
    placed = [at(a, b) for a, b in zip(entry.xs, entry.ys, strict=True)]
    parts.append(line_of(slot, placed, points=len(placed) <= 5))
    return [part for part in parts if part]


def fitting(ticks: Sequence[tuple[float, str]], start: float, end: float) -> list[tuple[float, float, str]]:
    """Of ticks (place in pixels, label) the last one and those before it that leave room, as (place, middle, label).

    Labels are moved until they lie between `start` and `end`, so that they stay clear of the next panel's.
    """
    kept: list[tuple[float, float, str]] = []
    limit = end
    for place, label in reversed(ticks):
        half = text_width(label, 12) / 2
        middle = max(min(place, end - half), start + half)
        if middle + half <= limit or not kept:
            kept.append((place, middle, label))
            limit = middle - half - 6
    return kept[::-1]
