"""Everything that is to be published, wherever it comes from: the files, the source they share, the provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ctxforge.provenance import FILE_NAME
from ctxforge.publish.files import Data, OnDisk, OnHub, Rewritten, Wanted
from ctxforge.publish.repository import Repository

README = "README.md"
REPORT = "verification.json"
CARD_DIGEST = "card_sha256"
"""Key of the provenance: the SHA-256 of the card as it was published, by which a later push sees an edit."""

OF_THE_REPOSITORY = (README, ".gitattributes", ".gitignore", REPORT)
"""Files that belong to the repository rather than to the checkpoint: the provenance doesn't vouch for them."""

_LOCAL = re.compile(r"(?:/|~|\.{1,2}/|[A-Za-z]:[\\/]).*")


@dataclass(frozen=True)
class Results:
    """What came of rewritten weight files.

    Attributes:
        sha256: of each file, by path.
        tensors: of each edited tensor's data, by name.
    """

    sha256: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication:
    """A checkpoint on its way to the Hub.

    Attributes:
        name: what it is called in messages.
        wanted: its files, without the card and the provenance, which are made at the end.
        source: the repository whose files may be copied on the server, at its pinned commit; None without one.
        source_card: the README.md of the source.
        own_card: a card that the user wrote, to be published as it is.
        record: the provenance as far as it is known; None for a folder without.
        config: config.json as it will be.
        report: what verification measured.
        notes: remarks for the plan.
    """

    name: str
    wanted: tuple[Wanted, ...]
    source: Repository | None
    source_card: str | None
    own_card: str | None
    record: Mapping[str, Any] | None
    config: Mapping[str, Any]
    report: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def provenance(
        self, wanted: tuple[Wanted, ...], results: Results, *, hashing: bool = True
    ) -> dict[str, Any] | None:
        """The provenance document, with the digests of what is published; None where nothing was recorded.

        Digests that the conversion recorded stay: a file that was changed since is seen as such.

        Args:
            wanted: the files of the checkpoint.
            results: of rewriting.
            hashing: hash local files that nobody hashed yet; a plan does without.
        """
        if self.record is None:
            return None
        digests = {one.path: digest for one in wanted if (digest := _digest(one, results, hashing)) is not None}
        files = {**digests, **_mapping(self.record.get("files"))}
        tensors = {**_mapping(self.record.get("edited_tensors")), **results.tensors}
        kept = {name: files[name] for name in sorted(files) if name not in (*OF_THE_REPOSITORY, FILE_NAME)}
        return {**self.record, "files": kept, "edited_tensors": dict(sorted(tensors.items()))}


def _mapping(value: Any) -> dict[str, Any]:
    """`value` where it is an object: what a provenance file holds is not to be trusted."""
    return dict(value) if isinstance(value, Mapping) else {}


def _digest(wanted: Wanted, results: Results, hashing: bool) -> str | None:
    contents = wanted.contents
    if isinstance(contents, OnDisk) and not hashing and not contents.is_hashed:
        return None
    if isinstance(contents, (Data, OnDisk)):
        return contents.sha256
    if isinstance(contents, OnHub):
        return contents.held.sha256
    assert isinstance(contents, Rewritten)
    return results.sha256.get(wanted.path)


def card_text(path: Path) -> str:
    """A README.md as it stands, line ends included."""
    return path.read_bytes().decode("utf-8", "replace")


def encoded(document: Mapping[str, Any]) -> bytes:
    """A JSON document as it is published."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance document without the paths of this machine: of each, only the last component stays."""
    document = without_paths(record)
    step: Any = document
    while isinstance(step, dict):
        source, recipe = step.get("source"), step.get("recipe")
        if isinstance(source, dict) and not source.get("revision") and isinstance(source.get("name"), str):
            source["name"] = _last(source["name"])
            if isinstance(recipe, dict) and isinstance(recipe.get("source"), str):
                recipe["source"] = _last(recipe["source"])
        step = step.get("previous")
    return document


def without_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with every path of this machine cut to its last component."""
    cut: dict[str, Any] = _scrubbed(dict(document))
    return cut


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_scrubbed(inner) for inner in value]
    return _last(value) if isinstance(value, str) and _LOCAL.fullmatch(value) else value


def _last(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/").rstrip("/")).name or "model"
