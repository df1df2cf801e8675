"""What a model card is made from, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CARD = "README.md"


@dataclass(frozen=True)
class CardInput:
    """Everything that a card tells.

    Attributes:
        source_id: Hub id of the checkpoint that was converted; None for a folder or a file, whose path is not told.
        source_revision: commit sha of it.
        source_card_text: its README.md, as it stands; None where it has none. Untrusted. Where it is a card of ours
            already, our part of it is replaced and its own part kept.
        repo_id: Hub id that the conversion is published under, as in the commands that serve it.
        provenance: `ctxforge.json` of the conversion; what it lacks is left out.
        verify_report: `VerifyReport.to_dict()`, or the document of `ctxforge verify --json` that holds it; None where
            nothing was verified, and the card says so.
        config: `config.json` of the conversion.
        branch: where in the repository it is published; None for main. Commands then download it by this name.
    """

    source_id: str | None
    source_revision: str | None
    source_card_text: str | None
    repo_id: str
    provenance: Mapping[str, Any]
    verify_report: Mapping[str, Any] | None
    config: Mapping[str, Any]
    branch: str | None = None


@dataclass(frozen=True)
class RenderedCard:
    """A card, ready to be written.

    Attributes:
        text: README.md, to be encoded as UTF-8 with its line ends as they are (`contents` does).
        files: the figures that it shows, by name in the repository's root. Names are among `FIGURES`; a figure of
            that list that is missing here must not be taken over from the source's repository, because it would be
            of another conversion.
        remarks: what was left out of the source's card and why, a line each, for the user and not for the card.
    """

    text: str
    files: Mapping[str, bytes]
    remarks: tuple[str, ...] = field(default=())

    @property
    def contents(self) -> dict[str, bytes]:
        """Every file of the card by name, README.md first."""
        return {CARD: self.text.encode("utf-8"), **self.files}
