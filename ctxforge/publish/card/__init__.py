"""The model card of a published conversion: README.md, and the figures that it shows.

card = render_card(CardInput(source_id, revision, source_readme, repo_id, provenance, report, config))
for name, data in card.contents.items(): ...   # README.md and the figures, to be written beside the checkpoint
"""

from __future__ import annotations

from ctxforge.publish.card.figures import FIGURES
from ctxforge.publish.card.render import render_card
from ctxforge.publish.card.source_card import SourceCard, read_source_card
from ctxforge.publish.card.types import CARD, CardInput, RenderedCard

__all__ = ["CARD", "FIGURES", "CardInput", "RenderedCard", "SourceCard", "read_source_card", "render_card"]
