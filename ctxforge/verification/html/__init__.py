"""The report of a verification, or of several methods compared, as one HTML page that needs nothing else.

Importing this package imports no torch: a report that was stored can be shown without it.
"""

from __future__ import annotations

from ctxforge.verification.html.comparison import ComparisonRow, render_comparison
from ctxforge.verification.html.comparison_figures import comparison_figures
from ctxforge.verification.html.figures import figures
from ctxforge.verification.html.page import render_report
from ctxforge.verification.html.png import png_bytes, save_figures, save_png

__all__ = [
    "ComparisonRow",
    "comparison_figures",
    "figures",
    "png_bytes",
    "render_comparison",
    "render_report",
    "save_figures",
    "save_png",
]
