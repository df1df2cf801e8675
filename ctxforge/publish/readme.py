"""The model card of a publication, and what the Hub makes of its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.publish.connection import Connection
from ctxforge.publish.from_folder import ancestors
from ctxforge.publish.publication import README, Publication


@dataclass(frozen=True)
class Card:
    """A card with its figures, by file name; `remarks` are for the user."""

    files: Mapping[str, bytes]
    remarks: tuple[str, ...] = ()
    drawn: bool = True

    @property
    def text(self) -> str:
        """README.md."""
        return self.files[README].decode()


def make_card(
    publication: Publication, repo: str, record: Mapping[str, Any] | None, branch: str | None = None
) -> Card | None:
    """The card of what is published as `repo`; None where nothing is known of it and it has none.

    A card that the user wrote is taken as it is. `branch` is where in the repository it goes; None for main.
    """
    if publication.own_card is not None:
        return Card({README: publication.own_card.encode()}, drawn=False)
    if record is None:
        text = publication.source_card
        return None if text is None else Card({README: text.encode()}, drawn=False)
    from ctxforge.publish.card import CardInput, render_card

    source_id, revision = next(ancestors(record), (None, None))
    made = render_card(
        CardInput(
            source_id=source_id,
            source_revision=revision,
            source_card_text=publication.source_card,
            repo_id=repo,
            provenance=record,
            verify_report=publication.report,
            config=publication.config,
            branch=branch,
        )
    )
    return Card(made.contents, made.remarks)


def figure_names() -> tuple[str, ...]:
    """Every name that a figure of a card can have."""
    from ctxforge.publish.card import FIGURES

    return FIGURES


def validate_card(connection: Connection, card: Card) -> tuple[str, ...]:
    """Ask the Hub whether it takes the card's metadata; gives its warnings.

    Raises:
        UsageError: it doesn't.
        HubError: it can't be asked.
    """
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but exported lazily

    headers = build_hf_headers(token=connection.api.token, library_name="ctxforge")

    def ask() -> dict[str, Any]:
        response = get_session().post(
            f"{connection.endpoint}/api/validate-yaml",
            json={"content": card.text, "repoType": "model"},
            headers=headers,
        )
        if response.status_code != 400:
            hf_raise_for_status(response)
        answer: dict[str, Any] = response.json()
        return answer

    with connection.errors("the card's metadata"):
        answer = connection.run("validating the card", ask)
    errors = _messages(answer, "errors")
    if errors:
        whose = "" if card.drawn else " (it is your own README.md)"
        raise UsageError(f"The Hub refuses the card's metadata{whose}: {'; '.join(errors)}", "Correct the README.md.")
    return _messages(answer, "warnings")


def licence_of(text: str | None) -> str | None:
    """The licence that a card names in its metadata; None without."""
    from ctxforge.publish.card import read_source_card

    found = read_source_card(text).metadata.get("license")
    return str(found) if found else None


def _messages(answer: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(str(one.get("message")) for one in answer.get(key) or () if isinstance(one, Mapping))


__all__ = ["Card", "licence_of", "make_card", "validate_card"]
