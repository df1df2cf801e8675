"""The figures of a verification by name, each a self-contained SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctxforge.verification.heatmap import heatmap_svg
from ctxforge.verification.html.rotation import RotaryTable, rotary_tables, rotation_svg
from ctxforge.verification.plot import curves_of, plot_svg, windows_note
from ctxforge.verification.svg import WIDE

if TYPE_CHECKING:
    from ctxforge.verification.report import VerifyReport

PERPLEXITY, RETRIEVAL, ROTATION = "perplexity", "retrieval", "rotation"


def figures(
    report: VerifyReport, *, plan: Mapping[str, Any] | None = None, width: float = WIDE, heading: bool = True
) -> dict[str, str]:
    """SVGs of what was measured: "perplexity" by position, "retrieval" by length and depth, "rotation" of the plan.

    Args:
        report: of `verify`.
        plan: the `plan` of the result's `ctxforge.json`; without it there is no "rotation".
        width: in pixels; 360 lays them out for a phone.
        heading: whether titles are drawn into them.
    """
    trained, target = report.protocol.trained_length, report.protocol.target_length
    found = {}
    curves = [curve for curve in curves_of(report) if any(0 < value < float("inf") for value in curve.values)]
    if curves:
        bands = windows_note(len(report.result.window_buckets))
        note = f"Bands: {bands}." if bands else ""
        found[PERPLEXITY] = plot_svg(curves, trained, target_length=target, width=width, heading=heading, note=note)
    if report.result.retrieval:
        found[RETRIEVAL] = heatmap_svg(report.result.retrieval, trained_length=trained, width=width, heading=heading)
    tables = rotary_tables(plan)
    if plan is not None and tables:
        method = str(plan.get("method", "method"))
        # The result is the second line of the other figures.
        slots = range(1, len(tables) + 1)
        found[ROTATION] = rotation_svg(
            labelled(method, tables), trained, slots=slots, scale=scale_of(plan), width=width, heading=heading
        )
    return found


def labelled(method: str, tables: list[RotaryTable]) -> list[tuple[str, RotaryTable]]:
    """Tables with the method's name and, where there are several, their layer type."""
    if len(tables) == 1:
        return [(method, tables[0])]
    return [(f"{method if t.changed else 'unchanged'}, {t.layer_type or 'all layers'}", t) for t in tables]


def scale_of(plan: Mapping[str, Any]) -> float:
    """s of the plan; 1 where it does not say."""
    scale = plan.get("scale")
    return float(scale) if isinstance(scale, int | float) and 0 < scale < 1e9 else 1.0
