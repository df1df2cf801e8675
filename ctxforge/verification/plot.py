"""Perplexity by position as a picture: one line a model, the trained length marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxforge.errors import UsageError
from ctxforge.lengths import format_length
from ctxforge.verification.chart import Axis, Mark, Series, chart_svg, linear_ticks, log_ticks, tick_label
from ctxforge.verification.svg import NARROW, WIDE

if TYPE_CHECKING:
    from ctxforge.verification.measures import Measures
    from ctxforge.verification.report import VerifyReport
    from ctxforge.verification.statistics import Interval


@dataclass(frozen=True)
class Curve:
    """One line of the plot: perplexity `values` at token `positions` (the middle of each bucket).

    `lows` and `highs` are the bounds of the values; empty where there are none.
    """

    label: str
    positions: tuple[float, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()


def curve_of(measures: Measures, label: str | None = None) -> Curve:
    """The perplexity of `measures` by position, at the middle of each bucket, with its interval over the windows."""
    bounds = [interval.bounds for interval in bucket_intervals(measures)]
    known = [pair for pair in bounds if pair is not None]
    complete = bool(bounds) and len(known) == len(bounds)
    return Curve(
        label or measures.label,
        tuple((bucket.start + bucket.end) / 2 for bucket in measures.buckets),
        tuple(bucket.ppl for bucket in measures.buckets),
        tuple(low for low, _ in known) if complete else (),
        tuple(high for _, high in known) if complete else (),
    )


def bucket_intervals(measures: Measures) -> tuple[Interval, ...]:
    """Perplexity of every bucket with its interval, the windows as units; none where there were no windows."""
    from ctxforge.verification.perplexity import perplexity
    from ctxforge.verification.statistics import Interval, paired_bootstrap

    windows = [window for window in measures.window_buckets if len(window) == len(measures.buckets)]
    if not windows or not measures.buckets:
        return ()
    found = paired_bootstrap([[b.nll for b in w] for w in windows], [[b.tokens for b in w] for w in windows])

    def bound(nll: float | None) -> float | None:
        return None if nll is None else perplexity(nll)

    return tuple(Interval(perplexity(i.value), bound(i.low), bound(i.high), i.units, i.method) for i in found)


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
    width: float = WIDE,
    heading: bool = True,
    note: str = "",
) -> str:
    """A self-contained SVG of `curves` on a logarithmic perplexity axis, intervals as bands.

    Args:
        curves: one line a model or method; points whose value is not a positive finite number are left out.
        trained_length: marked by a vertical dashed line, in tokens.
        target_length: right end of the axis; None for a little beyond the last point.
        title: above the plot.
        width: in pixels; 360 for a phone.
        heading: whether the title is drawn.
        note: below the plot, where there is a heading.

    Raises:
        UsageError: no curve has a point to draw.
    """
    drawn = [series_of(curve) for curve in curves]
    x, y = perplexity_axes(drawn, target_length, narrow=width <= NARROW)
    return chart_svg(
        drawn,
        x,
        y,
        title=title,
        description="; ".join(f"{e.label}: " + ", ".join(f"{y:.2f}" for y in e.ys) for e in drawn),
        marks=[Mark(trained_length, f"trained length {format_length(trained_length)}")],
        width=width,
        heading=heading,
        note=note,
    )


def windows_note(windows: int) -> str:
    """What the bands are; empty where there are none."""
    from ctxforge.verification.statistics import FEWEST_UNITS

    return f"95 % intervals over {windows} windows" if windows >= FEWEST_UNITS else ""


def perplexity_axes(drawn: Sequence[Series], target_length: int | None, *, narrow: bool) -> tuple[Axis, Axis]:
    """Position and perplexity axes that hold all of `drawn`, bands included.

    Raises:
        UsageError: no line has a point to draw.
    """
    values = [y for entry in drawn for y in (*entry.ys, *(entry.lows or ()), *(entry.highs or ()))]
    if not values:
        raise UsageError("there is no finite perplexity to plot.", "Measure at least one model first.")
    end = float(target_length or max(x for entry in drawn for x in entry.xs) * 1.05)
    low, high = min(values), max(values)
    # At least a factor of 2 between the ends: noise of a few per cent should not look like a collapse.
    low, high = (low / 1.12, high * 1.12) if high / low > 2 else (low / 1.6, high * 1.6)
    positions = linear_ticks(end, 4 if narrow else 8)
    return (
        Axis("position in the text (tokens)", 0.0, end, tuple((p, format_length(p)) for p in positions)),
        Axis("perplexity (log scale)", low, high, tuple((t, tick_label(t)) for t in log_ticks(low, high)), True),
    )


def series_of(curve: Curve) -> Series:
    """The curve's points that can be drawn."""
    bounded = bool(curve.lows) and bool(curve.highs)
    lows, highs = (curve.lows, curve.highs) if bounded else (curve.values, curve.values)
    kept = [
        (x, y, low, high)
        for x, y, low, high in zip(curve.positions, curve.values, lows, highs, strict=True)
        if all(math.isfinite(v) and v > 0 for v in (y, low, high))
    ]
    columns = [tuple(point[i] for point in kept) for i in range(4)]
    return Series(curve.label, columns[0], columns[1], columns[2] if bounded else None, columns[3] if bounded else None)
