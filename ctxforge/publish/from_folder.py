"""Publish a finished folder: what it shares with its source on the Hub is copied there, the rest is uploaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.checkpoint import Checkpoint, FileInfo, file_sha256, read_checkpoint
from ctxforge.errors import CheckpointError, CtxforgeError, UnsupportedError, UsageError
from ctxforge.provenance import FILE_NAME
from ctxforge.publish.card.source_card import BEGIN
from ctxforge.publish.connection import Connection
from ctxforge.publish.download import small_file
from ctxforge.publish.files import Contents, OnDisk, Wanted, from_disk
from ctxforge.publish.publication import OF_THE_REPOSITORY, README, REPORT, Publication, card_text, public_record
from ctxforge.publish.repository import Repository, read_repository

if TYPE_CHECKING:
    from ctxforge.static_checks import Check

_NOT_PUBLISHED = frozenset({README, FILE_NAME, ".gitignore"})


def from_folder(
    connection: Connection, folder: Path, report: Mapping[str, Any] | None, *, checkpoint: Checkpoint
) -> Publication:
    """The files of a checkpoint folder.

    Args:
        connection: the Hub.
        folder: what `extend` or `calibrate` wrote, or any other checkpoint.
        report: what verification measured; the one that lies in the folder where None is given.
        checkpoint: what `read_folder` gave.

    Raises:
        CheckpointError: the report in it is none.
        HubError: the source's card can't be read.
    """
    root = checkpoint.root
    assert root is not None
    recorded = checkpoint.json_files.get(FILE_NAME)
    source, notes = (None, ()) if recorded is None else _source(connection, recorded)
    own = _own_card(root, recorded)
    card = None if own is not None else _read_text(root / README)
    if source is not None and README in source.files and not (card is not None and BEGIN in card):
        card = card_text(small_file(connection, source, source.files[README]))
    if checkpoint.ignored:
        names = ", ".join(info.name for info in checkpoint.ignored[:3])
        notes = (*notes, f"{len(checkpoint.ignored)} files are not part of the checkpoint and stay here: {names}")
    return Publication(
        name=str(folder),
        wanted=tuple(
            Wanted(info.name, _contents(checkpoint, Path(os.path.realpath(root / info.name)), info))
            for info in checkpoint.files
            if info.name not in _NOT_PUBLISHED
        ),
        source=source,
        source_card=card,
        own_card=own,
        record=None if recorded is None else public_record(recorded),
        config=checkpoint.config,
        report=report if report is not None else _stored_report(root),
        notes=notes,
    )


def read_folder(folder: Path, *, force: bool) -> Checkpoint:
    """The checkpoint in a folder that may be published.

    Args:
        folder: see `from_folder`.
        force: publish it even when a static check fails.

    Raises:
        UsageError: there is none, or it fails `ctxforge check`.
        CheckpointError: it is no checkpoint.
        UnsupportedError: it holds a GGUF file.
    """
    from ctxforge.static_checks import check

    if not Path(folder).is_dir():
        raise UsageError(f"There is no folder {folder}.", "Give a folder that ctxforge extend wrote.")
    checkpoint = read_checkpoint(Path(folder))
    if checkpoint.weights == "gguf":
        raise UnsupportedError(f"{folder} holds a GGUF file.", "Publish the safetensors checkpoint it was made from.")
    failed = [one for one in check(folder).checks if one.verdict == "fail" and not _of_the_card(one)]
    if failed and not force:
        raise UsageError(
            f"{folder} fails the check {failed[0].name}: {failed[0].detail}",
            "Repair it (ctxforge check shows all), or publish it as it is with --force.",
        )
    return checkpoint


def _contents(checkpoint: Checkpoint, path: Path, info: FileInfo) -> Contents:
    weight = info.name in checkpoint.weight_files
    return OnDisk(path, info.size) if weight else from_disk(path, info.size)


def _of_the_card(check: Check) -> bool:
    """Whether a failed check is only about files that the user may change at will."""
    return bool(check.faults) and all(fault.file in OF_THE_REPOSITORY for fault in check.faults)


def ancestors(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The Hub repositories that a checkpoint comes from, as (owner/name, commit), the nearest first."""
    step: Any = record
    while isinstance(step, Mapping):
        source = step.get("source")
        if isinstance(source, Mapping):
            name, revision = source.get("name"), source.get("revision")
            if isinstance(name, str) and isinstance(revision, str):
                yield name.partition("@")[0], revision
        step = step.get("previous")


def _source(connection: Connection, record: Mapping[str, Any]) -> tuple[Repository | None, tuple[str, ...]]:
    for repo, revision in ancestors(record):
        try:
            found = read_repository(connection, repo, revision)
        except CtxforgeError as error:
            return None, (f"the source {repo} can't be read, so nothing is copied from it: {error.cause}",)
        if found is not None and found.sha == revision:
            return found, ()
        return None, (f"the source {repo} is not on this Hub at {revision[:12]}, so nothing is copied from it",)
    return None, ()


def _own_card(root: Path, record: Mapping[str, Any] | None) -> str | None:
    """The README.md of the folder where the user wrote it: it isn't the one that came with the source, nor one of ours.

    A card that ctxforge made is made anew, with its figures, around the same part of the source's.
    """
    path = root / README
    if not path.is_file():
        return None
    files = record.get("files") if record is not None else None
    came_with = files.get(README) if isinstance(files, Mapping) else None
    text = _read_text(path)
    if (came_with is not None and file_sha256(path) == came_with) or (text is not None and BEGIN in text):
        return None
    return text


def _read_text(path: Path) -> str | None:
    return card_text(path) if path.is_file() else None


def _stored_report(root: Path) -> Mapping[str, Any] | None:
    return read_report_file(root / REPORT) if (root / REPORT).is_file() else None


def read_report_file(path: Path) -> Mapping[str, Any]:
    """A verification report from a JSON file: `verify --json`, or the report alone.

    Raises:
        CheckpointError: it isn't JSON, or no object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not a JSON report.", "Give what ctxforge verify --json printed.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON report.", "Give what ctxforge verify --json printed.")
    inner = document.get("report")
    return inner if isinstance(inner, dict) else document
