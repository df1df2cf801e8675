"""The ranking as a picture: a row a method, its score with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ctxforge.verification.chart import Axis, log_ticks, point_of, tick_label
from ctxforge.verification.html import numbers
from ctxforge.verification.statistics import Interval
from ctxforge.verification.svg import NARROW, document, footnote, line, text, text_width

_ROW = 26.0


def ranking_svg(
    scores: Sequence[tuple[str, Interval, int]],
    *,
    score: str,
    title: str,
    width: float,
    heading: bool = True,
) -> str:
    """A self-contained SVG of scores with their intervals, in the order given, the first one's interval shaded through.

    Args:
        scores: name, score and slot of every method; those without a score are named all the same.
        score: what the score is, with its unit, below the axis.
        title: above the picture and for screen readers.
        width: in pixels.
        heading: whether the title is drawn.
    """
    narrow = width <= NARROW
    longest = 15 if narrow else 30
    names = [name if len(name) <= longest else name[: longest - 1] + "…" for name, _, _ in scores]
    # The best name is bold, which is wider.
    left = 20.0 + max(text_width(name) * (1.15 if row == 0 else 1.0) for row, name in enumerate(names))
    values = [v for _, i, _ in scores for v in (i.value, *(i.bounds or ())) if math.isfinite(v)] or [0.0, 1.0]
    write = numbers.alike(values)
    words = [
        f"{write(i.value)} ({numbers.bounds(i, write)})" if math.isfinite(i.value) else numbers.NONE
        for _, i, _ in scores
    ]
    beside = 12.0 if narrow else 20.0 + max(text_width(entry, 12) for entry in words)
    top = 46.0 if heading else 12.0
    floor = top + _ROW * len(scores) + 4
    axis = _axis(min(values), max(values), 4 if narrow else 8)

    def at(value: float) -> float:
        return left + (width - left - beside) * axis.share(value)

    parts = [text(8.0, 28, title, css="title")] if heading else []
    best = scores[0][1]
    if best.bounds is not None:
        low, high = (at(bound) for bound in best.bounds)
        parts.append(
            f'<rect x="{low:.1f}" y="{top:.1f}" width="{max(high - low, 1):.1f}" height="{floor - top:.1f}" '
            'class="band ink"/>'
        )
    for value, label in axis.ticks:
        parts.append(line(at(value), top, at(value), floor + 5, "grid"))
        parts.append(text(at(value), floor + 20, label, css="small soft", anchor="middle"))
    parts.append(line(left, floor, width - beside, floor, "axis"))
    for row, ((_, found, slot), name) in enumerate(zip(scores, names, strict=True)):
        y = top + _ROW * (row + 0.5)
        parts.append(text(left - 12, y + 4.5, name, css="strong" if row == 0 else "", anchor="end"))
        if math.isfinite(found.value):
            if found.bounds is not None:
                low, high = (at(bound) for bound in found.bounds)
                css = "curve base" if slot < 0 else f"curve s{slot % 8}"
                parts.append(line(low, y, high, y, css))
            parts.append(point_of(slot, at(found.value), y))
        if not narrow:
            parts.append(text(width - beside + 12, y + 4.5, words[row], css="small soft"))
    score = f"{score} (log scale)" if axis.logarithmic else score
    label = score if text_width(score, 12) <= width - 16 else score[: int((width - 16) / 7.2) - 1] + "…"
    # Centred below the axis, unless that runs over an edge.
    half = text_width(label, 12) / 2
    middle = min(max((left + width - beside) / 2, half + 8), width - half - 8)
    parts.append(text(middle, floor + 40, label, css="small", anchor="middle"))
    described = "; ".join(f"{name}: {shown}" for (name, _, _), shown in zip(scores, words, strict=True))
    units = sorted({found.units for _, found, _ in scores if found.bounds is not None})
    note = f"Bars: 95 % intervals over {units[0]} prompts; shaded: the best method's." if len(units) == 1 else ""
    below = footnote(note, floor + 62, width, shown=heading)
    return document(width, floor + 52 + 18 * len(below), title, described, [*parts, *below])


def _axis(low: float, high: float, most: int) -> Axis:
    """From 0 where the values lie on one side of it, with round ticks; logarithmic where they span a factor of 20."""
    if 0 < 20 * low < high:
        # Linear, the methods worth telling apart would share a few pixels beside a bad one.
        low, high = low / 1.2, high * 1.2
        steps = log_ticks(low, high)
        return Axis("", low, high, tuple((t, tick_label(t)) for t in steps[:: 1 + (len(steps) - 1) // most]), True)
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        high = low + 1.0
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * f for f in (1, 2, 5, 10, 20) if (high - low) / (step * f) <= most)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple((i * step, f"{round(i * step, 12):g}") for i in range(first, last + 1))
    return Axis("", first * step, last * step, ticks)
