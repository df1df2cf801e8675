"""The retrieval grid as a picture: context length against depth, coloured by the loss of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ctxforge.errors import UsageError
from ctxforge.lengths import format_length
from ctxforge.verification.retrieval import RetrievalCell
from ctxforge.verification.svg import document, text

_WIDTH = 780.0
_LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 92.0, 24.0, 62.0, 34.0, 86.0
# A model that knows only that a digit follows pays ln 10 a digit: from there on the colour says "not found".
_WORST = math.log(10)
# Blue to orange, with the same order of lightness: legible without colour, and on light and dark paper.
_GOOD, _MIDDLE, _BAD = (33, 102, 172), (222, 226, 230), (178, 74, 11)


def heatmap_svg(cells: Sequence[RetrievalCell], title: str = "Retrieval by context length and depth") -> str:
    """A self-contained SVG of the grid; each cell shows how many answers were exact, of how many.

    Raises:
        UsageError: there is no cell.
    """
    if not cells:
        raise UsageError("there is no retrieval cell to draw.", "Measure retrieval first.")
    lengths = sorted({cell.length for cell in cells}, reverse=True)
    floor = _TOP + _ROW * len(lengths)
    across = _WIDTH - _LEFT - _RIGHT
    parts = [text(_LEFT, 28, title, css="title"), text(_LEFT, 49, "exact answers of needles asked", css="small soft")]
    for row, length in enumerate(lengths):
        y = _TOP + _ROW * row
        parts.append(text(_LEFT - 10, y + _ROW / 2 + 4.5, format_length(length), anchor="end"))
        for cell in cells:
            if cell.length != length:
                continue
            x, width = _LEFT + across * cell.depth_start, across * (cell.depth_end - cell.depth_start)
            colour, ink = _colour(cell.nll)
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{_ROW - 2:.1f}" rx="3" '
                f'style="fill:{colour}"><title>{cell.nll:.3f} nats a token</title></rect>'
                f'<text x="{x + width / 2:.1f}" y="{y + _ROW / 2 + 4.5:.1f}" text-anchor="middle" '
                f'style="fill:{ink};font-size:12px">{cell.exact}/{cell.count}</text>'
            )
    for tenth in range(0, 11, 2):
        x = _LEFT + across * tenth / 10
        anchor = "start" if tenth == 0 else "end" if tenth == 10 else "middle"
        parts.append(text(x, floor + 18, f"{tenth * 10} %", css="small soft", anchor=anchor))
    parts.append(text(_LEFT + across / 2, floor + 38, "depth of the needle in the context", anchor="middle"))
    parts.append(text(20, (_TOP + floor) / 2, "context", anchor="middle", turn=-90))
    parts += _scale(floor + 54)
    described = "; ".join(
        f"{format_length(c.length)} at {c.depth_start:.0%}: {c.exact}/{c.count}, {c.nll:.2f} nats" for c in cells
    )
    return document(_WIDTH, floor + _BOTTOM, title, described, parts)


def _colour(nll: float) -> tuple[str, str]:
    """Fill and text colour of a cell."""
    share = min(max(nll / _WORST, 0.0), 1.0) if math.isfinite(nll) else 1.0
    first, second, t = (_GOOD, _MIDDLE, 2 * share) if share < 0.5 else (_MIDDLE, _BAD, 2 * share - 1)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(first, second, strict=True))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return f"rgb({red},{green},{blue})", "#111111" if bright > 140 else "#ffffff"


def _scale(y: float) -> list[str]:
    left, width, steps = _WIDTH - _RIGHT - 220, 140.0, 28
    parts = [
        f'<rect x="{left + width * i / steps:.1f}" y="{y:.1f}" width="{width / steps + 0.3:.1f}" height="12" '
        f'style="fill:{_colour(_WORST * i / (steps - 1))[0]}"/>'
        for i in range(steps)
    ]
    parts.append(text(left - 8, y + 10.5, "answer loss, nats a token: 0", css="small soft", anchor="end"))
    parts.append(text(left + width + 8, y + 10.5, "≥ ln 10", css="small soft"))
    return parts
