"""The retrieval grid as a picture: context length against depth, coloured by the loss of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctxforge.errors import UsageError
from ctxforge.lengths import format_length
from ctxforge.verification.svg import NARROW, WIDE, document, line, text, text_width

if TYPE_CHECKING:
    from ctxforge.verification.scored import RetrievalCell

_ROW = 34.0
# A model that knows only that a digit follows pays ln 10 a digit: from there on the colour says "not found".
_WORST = math.log(10)
# Blue to orange, with the same order of lightness: legible without colour, and on light and dark paper.
_GOOD, _MIDDLE, _BAD = (33, 102, 172), (222, 226, 230), (178, 74, 11)
Colour = tuple[int, int, int]


def heatmap_svg(
    cells: Sequence[RetrievalCell],
    title: str = "Retrieval by context length and depth",
    *,
    trained_length: int | None = None,
    width: float = WIDE,
    heading: bool = True,
) -> str:
    """A self-contained SVG of the grid; each cell shows how many answers were exact, of how many.

    Context lengths go down and depths across; on a narrow picture depths go down, in rows that a phone can show.

    Args:
        cells: of one model.
        title: above the picture.
        trained_length: L0; a dashed line parts the lengths beyond it from the others.
        width: in pixels; 360 for a phone.
        heading: whether the title is drawn.

    Raises:
        UsageError: there is no cell.
    """
    if not cells:
        raise UsageError("there is no retrieval cell to draw.", "Measure retrieval first.")
    described = "; ".join(
        f"{format_length(c.length)} at {c.depth_start:.0%}: {c.exact}/{c.count}, {c.nll:.2f} nats" for c in cells
    )
    draw = _down if width <= NARROW else _across
    parts, floor = draw(cells, trained_length, width, 62.0 if heading else 26.0)
    if heading:
        parts.insert(0, text(8, 28, title, css="title"))
    parts += _scale(floor, width)
    return document(width, floor + 34, title, described, parts)


def colour_of(nll: float) -> tuple[Colour, Colour]:
    """Fill and ink of a cell: of black and white the one that stands out more, which is always 4.5:1 or better."""
    share = min(max(nll / _WORST, 0.0), 1.0) if math.isfinite(nll) else 1.0
    first, second, t = (_GOOD, _MIDDLE, 2 * share) if share < 0.5 else (_MIDDLE, _BAD, 2 * share - 1)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(first, second, strict=True))
    fill = (red, green, blue)
    black, white = (0, 0, 0), (255, 255, 255)
    return fill, black if contrast(fill, black) >= contrast(fill, white) else white


def contrast(first: Colour, second: Colour) -> float:
    """Contrast ratio of two sRGB colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    bright, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: Colour) -> float:
    linear = [c / 12.92 if (c := v / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _across(cells: Sequence[RetrievalCell], trained: int | None, width: float, top: float) -> tuple[list[str], float]:
    """Lengths down, depths across; returns the parts and where the scale may begin."""
    lengths = sorted({cell.length for cell in cells}, reverse=True)
    left, right = 96.0, 24.0
    across, floor = width - left - right, top + _ROW * len(lengths)
    parts = [text(8, top - 12, "context", css="small soft"), text(left, top - 12, _subtitle(), css="small soft")]
    for row, length in enumerate(lengths):
        parts.append(text(left - 10, top + _ROW * (row + 0.5) + 4.5, _length(length, trained), anchor="end"))
    for cell in cells:
        y = top + _ROW * lengths.index(cell.length)
        x, wide = left + across * cell.depth_start, across * (cell.depth_end - cell.depth_start)
        parts.append(_cell(cell, x, y, wide, _ROW))
    beyond = sum(trained is not None and length > trained for length in lengths)
    if 0 < beyond < len(lengths):
        parts.append(line(8, top + _ROW * beyond, width - right, top + _ROW * beyond, "mark"))
    for tenth in range(0, 11, 2):
        anchor = "start" if tenth == 0 else "end" if tenth == 10 else "middle"
        parts.append(text(left + across * tenth / 10, floor + 18, f"{tenth * 10} %", css="small soft", anchor=anchor))
    parts.append(text(left + across / 2, floor + 38, "depth of the needle in the context", anchor="middle"))
    return parts, floor + 54


def _down(cells: Sequence[RetrievalCell], trained: int | None, width: float, top: float) -> tuple[list[str], float]:
    """Depths down, lengths across."""
    lengths = sorted({cell.length for cell in cells})
    left, right, high = 48.0, 6.0, 320.0
    top += 26.0
    wide = (width - left - right) / len(lengths)
    parts = [text(8, top - 42, _subtitle(), css="small soft"), text(8, top - 8, "depth", css="small soft")]
    for column, length in enumerate(lengths):
        x = left + wide * (column + 0.5)
        parts.append(text(x, top - 8, format_length(length), css="small", anchor="middle"))
        if length == trained:
            parts.append(text(x, top - 22, "L0", css="small soft", anchor="middle"))
    for cell in cells:
        x = left + wide * lengths.index(cell.length)
        parts.append(_cell(cell, x, top + high * cell.depth_start, wide, high * (cell.depth_end - cell.depth_start)))
    inside = sum(trained is None or length <= trained for length in lengths)
    if 0 < inside < len(lengths):
        parts.append(line(left + wide * inside, top - 20, left + wide * inside, top + high, "mark"))
    for tenth in range(0, 11, 2):
        y = top + high * tenth / 10 + (11 if tenth == 0 else -2 if tenth == 10 else 4.5)
        parts.append(text(left - 6, y, f"{tenth * 10} %", css="small soft", anchor="end"))
    return parts, top + high + 16


def _cell(cell: RetrievalCell, x: float, y: float, width: float, height: float) -> str:
    fill, ink = colour_of(cell.nll)
    shown = f"{cell.exact}/{cell.count}"
    size = 12.0 if text_width(shown, 12) <= width - 4 else 10.0
    return (
        f'<g><rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}" rx="3" '
        f'style="fill:{_rgb(fill)}"><title>{cell.nll:.3f} nats a token</title></rect>'
        f'<text x="{x + width / 2:.1f}" y="{y + height / 2 + 4.2:.1f}" text-anchor="middle" '
        f'style="fill:{_rgb(ink)};font-size:{size:g}px">{shown}</text></g>'
    )


def _subtitle() -> str:
    return "exact answers of needles asked"


def _length(length: int, trained: int | None) -> str:
    return f"L0 = {format_length(length)}" if length == trained else format_length(length)


def _rgb(colour: Colour) -> str:
    return "rgb({},{},{})".format(*colour)


def _scale(y: float, width: float) -> list[str]:
    """The colours' key, with its ends in words."""
    steps, wide = 28, 120.0
    left, step = width - 64.0 - wide, wide / steps
    # Steps overlap a little, or the paper would shine through between them.
    parts = [
        f'<rect x="{left + step * i:.1f}" y="{y:.1f}" width="{step + 0.8 * (i < steps - 1):.1f}" height="12" '
        f'style="fill:{_rgb(colour_of(_WORST * i / (steps - 1))[0])}"/>'
        for i in range(steps)
    ]
    label = "answer loss (nats): 0" if width <= NARROW else "answer loss, nats a token: 0"
    parts.append(text(left - 8, y + 10.5, label, css="small soft", anchor="end"))
    parts.append(text(left + wide + 8, y + 10.5, "≥ ln 10", css="small soft"))
    return parts
