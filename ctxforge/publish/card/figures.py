"""The figures of a card: SVG files beside it, which the Hub shows by their relative path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxforge.publish.card.record import Record
from ctxforge.verification.html.figures import PERPLEXITY, RETRIEVAL, figures, labelled
from ctxforge.verification.html.rotation import rotation_svg

if TYPE_CHECKING:
    from ctxforge.verification.report import VerifyReport

LAMBDA_FILE = "ctxforge-lambda.svg"
PERPLEXITY_FILE = "ctxforge-perplexity.svg"
RETRIEVAL_FILE = "ctxforge-retrieval.svg"
FIGURES = (LAMBDA_FILE, PERPLEXITY_FILE, RETRIEVAL_FILE)
"""Every name that a figure of a card can have, in the repository's root."""


def draw(record: Record, report: VerifyReport | None) -> dict[str, bytes]:
    """Lambda by rotary pair, perplexity by position and the retrieval grid: those that there is something to draw of.

    The same input gives the same bytes.
    """
    drawn: dict[str, str] = {}
    if record.changed and record.original_length:
        named = labelled(record.method, list(record.tables))
        # The result is the second line of the other figures.
        slots = range(1, len(named) + 1)
        drawn[LAMBDA_FILE] = rotation_svg(named, record.original_length, slots=slots, scale=_scale(record))
    if report is not None:
        found = figures(report)
        names = {PERPLEXITY: PERPLEXITY_FILE, RETRIEVAL: RETRIEVAL_FILE}
        drawn |= {names[name]: svg for name, svg in found.items() if name in names}
    return {name: svg.encode("utf-8", errors="replace") for name, svg in drawn.items()}


def _scale(record: Record) -> float:
    """s, where it is a number that an axis can reach."""
    return record.scale if record.scale is not None and 0 < record.scale < 1e9 else 1.0
