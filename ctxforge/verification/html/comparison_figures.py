"""The figures of several methods by name, each a self-contained SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctxforge.lengths import format_length
from ctxforge.verification.chart import BASE, Axis, Mark, Series, chart_svg
from ctxforge.verification.html import tables
from ctxforge.verification.html.figures import PERPLEXITY, RETRIEVAL, ROTATION, scale_of
from ctxforge.verification.html.panels import panels_svg
from ctxforge.verification.html.ranking import ranking_svg
from ctxforge.verification.html.rotation import TITLE, rotary_tables, rotation_svg
from ctxforge.verification.plot import curve_of, perplexity_axes, series_of, windows_note
from ctxforge.verification.svg import NARROW, WIDE

if TYPE_CHECKING:
    from ctxforge.verification.html.comparison import ComparisonRow

RANKING, BY_METHOD = "ranking", "-by-method"
CAPTIONS = {
    RANKING: "Ranking",
    PERPLEXITY: "Perplexity by position",
    PERPLEXITY + BY_METHOD: "Perplexity by position, method by method",
    RETRIEVAL: "Retrieval by context length",
    RETRIEVAL + BY_METHOD: "Retrieval by context length, method by method",
    ROTATION: TITLE,
}
# More bands than these in one chart hide each other; each method then gets a panel as well.
_MOST_BANDS = 3
Drawn = tuple[list[Series], Axis, Axis]


def comparison_figures(
    rows: Sequence[ComparisonRow],
    *,
    trained_length: int,
    target_length: int,
    score: str = "score that the methods are ranked by",
    width: float = WIDE,
    heading: bool = True,
) -> dict[str, str]:
    """SVGs of the methods in the order of `rows`, which is best first.

    "ranking": scores with their intervals; "perplexity" by position and "retrieval" by length: a line a method, with
    bands for all of up to three, for the best and the unmodified model of more; then "perplexity-by-method" and
    "retrieval-by-method" have a panel with a band for each; "rotation".

    Args:
        rows: the methods, best first.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        score: what `ComparisonRow.score` is, with its unit.
        width: in pixels; 360 lays them out for a phone.
        heading: whether titles are drawn into them.
    """
    narrow = width <= NARROW
    slots = method_slots(rows)
    found = {}
    if len(rows) > 1 and any(math.isfinite(row.score.value) for row in rows):
        scores = [(row.name, row.score, slot) for row, slot in zip(rows, slots, strict=True)]
        found[RANKING] = ranking_svg(scores, score=score, title=CAPTIONS[RANKING], width=width, heading=heading)
    windows = min((len(row.measures.window_buckets) for row in rows), default=0)
    for name, drawn, bands in (
        (PERPLEXITY, _perplexity(rows, slots, target_length, narrow=narrow), windows_note(windows)),
        (RETRIEVAL, _retrieval(rows, slots, narrow=narrow), "95 % intervals over the prompts (Wilson)"),
    ):
        if drawn is not None:
            found |= _lines(name, drawn, bands, trained_length, width=width, heading=heading)
    placed = [(slot, row.name, t) for slot, row in zip(slots, rows, strict=True) for t in rotary_tables(row.plan)]
    placed = [(slot, name, table) for slot, name, table in placed if table.changed]
    if placed:
        named, order = [(name, table) for _, name, table in placed], [slot for slot, _, _ in placed]
        scale = max(scale_of(row.plan) for row in rows if row.plan is not None)
        found[ROTATION] = rotation_svg(
            named, trained_length, slots=order, scale=scale, width=width, heading=heading, ends=True
        )
    return found


def method_slots(rows: Sequence[ComparisonRow]) -> list[int]:
    """The slot of every method: by rank, the unmodified model apart, so that no colour is spent on it."""
    slots: list[int] = []
    for row in rows:
        slots.append(BASE if row.plan is None else sum(slot != BASE for slot in slots))
    return slots


def _lines(name: str, drawn: Drawn, bands: str, trained_length: int, *, width: float, heading: bool) -> dict[str, str]:
    """The chart called `name`, and its panels where there are too many bands for one chart."""
    series, x, y = drawn
    description = "; ".join(f"{s.label}: " + ", ".join(f"{v:.4g}" for v in s.ys) for s in series)
    many = len(series) > _MOST_BANDS
    shown = [_back(s) if many and number and s.slot != BASE else s for number, s in enumerate(series)]
    mark = f"trained length {format_length(trained_length)}"
    of = ", of the best method and the unmodified model" if many else ""
    found = {
        name: chart_svg(
            shown,
            x,
            y,
            title=CAPTIONS[name],
            description=description,
            marks=[Mark(trained_length, mark)] if trained_length > x.low else [],
            width=width,
            heading=heading,
            ends=True,
            note=f"Bands: {bands}{of}." if bands else "",
        )
    }
    if many:
        found[name + BY_METHOD] = panels_svg(
            series,
            _few(x, trained_length),
            _sparse(y),
            title=CAPTIONS[name + BY_METHOD],
            description=description,
            mark=trained_length,
            width=width,
            heading=heading,
            note=(f"Bands: {bands}. " if bands else "")
            + "Grey: the other methods, the clearer line the unmodified model.",
        )
    return found


def _back(series: Series) -> Series:
    """The line where it stands behind the best one: thin, its interval left to its panel."""
    return dataclasses.replace(series, lows=None, highs=None, thin=True)


def _few(axis: Axis, trained_length: int) -> Axis:
    """The axis with ticks at its ends and at the trained length."""
    values = sorted({axis.low, float(trained_length), axis.high})
    return dataclasses.replace(
        axis, ticks=tuple((v, format_length(int(v))) for v in values if axis.low <= v <= axis.high)
    )


def _sparse(axis: Axis) -> Axis:
    """The axis with few ticks: a panel is low."""
    if axis.high == 100 and not axis.logarithmic:
        return dataclasses.replace(axis, ticks=((0.0, "0"), (50.0, "50"), (100.0, "100")))
    return dataclasses.replace(axis, ticks=axis.ticks[:: 1 + (len(axis.ticks) - 1) // 4])


def _perplexity(
    rows: Sequence[ComparisonRow], slots: Sequence[int], target_length: int, *, narrow: bool
) -> Drawn | None:
    series = []
    for row, slot in zip(rows, slots, strict=True):
        drawn = series_of(curve_of(row.measures, row.name))
        if drawn.xs:
            series.append(dataclasses.replace(drawn, slot=slot))
    return (series, *perplexity_axes(series, target_length, narrow=narrow)) if series else None


def _retrieval(rows: Sequence[ComparisonRow], slots: Sequence[int], *, narrow: bool) -> Drawn | None:
    """Shares of exact answers with Wilson's interval; prompts are the units."""
    lengths = sorted({cell.length for row in rows for cell in row.measures.retrieval})
    series = []
    for row, slot in zip(rows, slots, strict=True):
        shares = [(n, share) for n in lengths if (share := tables.exact_at(row.measures, n)) is not None]
        points = [(float(n), share.value, *(share.bounds or (share.value,) * 2)) for n, share in shares]
        if points:
            columns = [tuple(point[i] if i == 0 else 100 * point[i] for point in points) for i in range(4)]
            series.append(Series(row.name, columns[0], columns[1], columns[2], columns[3], slot=slot))
    if not series:
        return None
    # A single length would make an axis without extent.
    low, high = (lengths[0], lengths[-1]) if len(lengths) > 1 else (lengths[0] / 2, lengths[0] * 2)
    step = 1 + (len(lengths) - 1) // (6 if narrow else 10)
    ticks = tuple((float(n), format_length(n)) for n in lengths[::-1][::step][::-1])
    return (
        series,
        Axis("context length (tokens, log scale)", float(low), float(high), ticks, True),
        Axis("exact answers (%)", 0.0, 100.0, tuple((float(p), str(p)) for p in range(0, 101, 20))),
    )
