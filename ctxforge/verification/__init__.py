"""Measuring a converted checkpoint: perplexity by length and position, retrieval, and what short contexts lost.

Importing this package imports neither torch nor transformers; they come with the first function that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctxforge.verification.settings import VerifySettings, measured_lengths

if TYPE_CHECKING:
    from ctxforge.verification.heatmap import heatmap_svg
    from ctxforge.verification.measure import evaluate_model, prepare_text
    from ctxforge.verification.measures import Measures
    from ctxforge.verification.plot import Curve, curves_of, plot_svg
    from ctxforge.verification.report import Protocol, ShortContext, VerifyReport, short_context
    from ctxforge.verification.run import protocol, verify
    from ctxforge.verification.tables import render_table

_HOME = {
    "Curve": "plot",
    "Measures": "measures",
    "Protocol": "report",
    "ShortContext": "report",
    "VerifyReport": "report",
    "curves_of": "plot",
    "evaluate_model": "measure",
    "heatmap_svg": "heatmap",
    "plot_svg": "plot",
    "prepare_text": "measure",
    "protocol": "run",
    "render_table": "tables",
    "short_context": "report",
    "verify": "run",
}

__all__ = [
    "Curve",
    "Measures",
    "Protocol",
    "ShortContext",
    "VerifyReport",
    "VerifySettings",
    "curves_of",
    "evaluate_model",
    "heatmap_svg",
    "measured_lengths",
    "plot_svg",
    "prepare_text",
    "protocol",
    "render_table",
    "short_context",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
