"""The card that a folder would be published with, without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ctxforge.checkpoint import file_sha256, read_checkpoint
from ctxforge.errors import CheckpointError, UsageError
from ctxforge.provenance import FILE_NAME
from ctxforge.publish.card.record import mapping
from ctxforge.publish.card.render import render_card
from ctxforge.publish.card.types import CARD, CardInput, RenderedCard
from ctxforge.publish.from_folder import ancestors, read_report_file
from ctxforge.publish.publication import REPORT, public_record
from ctxforge.sources import resolve_source


def preview(folder: Path, repo_id: str | None, source_card: Path | None, report: Path | None) -> RenderedCard:
    """Render the card of a folder.

    Args:
        folder: what `extend` or `calibrate` wrote.
        repo_id: the name that it shall have; None for one made of the folder's.
        source_card: README.md of the source; None for the one that lies in the folder.
        report: of `verify --report FILE.json` or `verify --json`; None for verification.json in the folder.

    Raises:
        CheckpointError: the folder is no checkpoint, or no conversion; a report that is no JSON.
        UsageError: a name that is none, a report of another kind, or a card that can't be read.
    """
    checkpoint = read_checkpoint(resolve_source(str(folder)))
    record = checkpoint.json_files.get(FILE_NAME)
    if record is None:
        raise CheckpointError(
            f"{folder} has no {FILE_NAME}, so nothing is known of a conversion",
            "give a folder that ctxforge extend wrote",
        )
    source_id, revision = next(ancestors(record), (None, None))
    kept = folder / REPORT
    chosen = report if report is not None else kept if kept.is_file() else None
    made = render_card(
        CardInput(
            source_id=source_id,
            source_revision=revision,
            source_card_text=_card(folder, source_card),
            repo_id=_name(folder) if repo_id is None else repo_id,
            provenance=public_record(record),
            verify_report=None if chosen is None else read_report_file(chosen),
            config=checkpoint.config,
        )
    )
    if _is_own(folder / CARD, mapping(record, "files").get(CARD)):
        words = f"{CARD} in {folder} did not come with the source: push publishes that as it is, and not this card"
        made = replace(made, remarks=(words, *made.remarks))
    return made


def _is_own(path: Path, came_with: object) -> bool:
    return path.is_file() and file_sha256(path) != came_with


def _card(folder: Path, given: Path | None) -> str | None:
    """Line ends stay as they are, which reading as text would change."""
    path = folder / CARD if given is None else given
    if given is None and not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}", "give --source-card a README.md") from None


def _name(folder: Path) -> str:
    """OWNER and the folder's name, of the letters that a repository may have."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folder.absolute().name)
    return f"OWNER/{kept.strip('-._')[:90] or 'model'}"
