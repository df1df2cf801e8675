"""What `--data` names: a file, a folder or a Hub data set, with a column and a weight."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctxforge.errors import UsageError

Kind = Literal["jsonl", "text", "folder", "parquet", "hub"]

HUB = "hf://"
REPOSITORIES = "repositories"
"""The fragment that joins a folder's subfolders into one document each: `code/#repositories`."""

_EXAMPLES = (
    "write FILE.jsonl#column::0.3, FILE.txt, FOLDER, FILE.parquet or hf://owner/name:config:split@revision#column"
)
_SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
}
_SPLITS = ("train", "validation", "test")
_REPO = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


@dataclass(frozen=True)
class DataSource:
    """One source of documents.

    Attributes:
        kind: how it is read. A folder that holds nothing but jsonl files, or parquet files, is read as their shards.
        location: the path, or the Hub id of a data set.
        column: the field or column that holds the text or the messages; None takes `text`, `content` or `messages`.
        weight: its share of the rows that are drawn; None leaves it to the number of tokens.
        by_repository: of a folder: each subfolder is one document, its files joined in the order of their paths
            (princeton-nlp/ProLong concatenates code by repository).
        config, split, revision: of a Hub data set.
    """

    kind: Kind
    location: str
    column: str | None = None
    weight: float | None = None
    by_repository: bool = False
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The file or folder; not of a Hub data set."""
        assert self.kind != "hub"
        return Path(self.location)

    @property
    def name(self) -> str:
        """How messages call it."""
        if self.kind != "hub":
            return self.location
        return f"{HUB}{self.location}" + (f"@{self.revision}" if self.revision else "")


def parse_source(text: str) -> DataSource:
    """Read `--data SPEC`.

    `::NUMBER` at the end is the weight, `#NAME` before it the column (`#repositories` of a folder: one document a
    subfolder). A Hub data set is `hf://NAME[:CONFIG][:SPLIT][@REVISION]`; with one part, `train`, `validation` and
    `test` are splits and anything else is a config; `hf://NAME::SPLIT` names the split alone. A path that exists as
    it is written is taken as it is.

    Raises:
        UsageError: no such file, a suffix that isn't read, a weight that isn't a positive number, or a malformed id.
    """
    if text.startswith(HUB):
        body, weight = _weight(text)
        return _hub(body, weight, text)
    if text and Path(text).exists():
        return _local(text, None, None)
    body, weight = _weight(text)
    if not Path(body).exists() and "#" in body:
        body, column = body.rsplit("#", 1)
        return _local(body, column or None, weight)
    return _local(body, None, weight)


def _weight(text: str) -> tuple[str, float | None]:
    body, mark, written = text.rpartition("::")
    if not mark or not body:
        return text, None
    try:
        weight = float(written)
    except ValueError:
        if text.startswith(HUB):  # `::SPLIT`
            return text, None
        raise UsageError(f"the weight {written!r} of {body} is not a number", _EXAMPLES) from None
    if not 0 < weight < float("inf"):
        raise UsageError(f"the weight {written} of {body} is not a positive number", _EXAMPLES)
    return body, weight


def _hub(body: str, weight: float | None, text: str) -> DataSource:
    body, _, column = body.removeprefix(HUB).partition("#")
    body, _, revision = body.partition("@")
    repo, *parts = body.split(":")
    if not _REPO.fullmatch(repo) or len(parts) > 2:
        raise UsageError(f"{text!r} does not name a Hub data set", _EXAMPLES)
    if len(parts) == 1 and parts[0] in _SPLITS:
        parts.insert(0, "")
    config, split = [*parts, "", ""][:2]
    return DataSource(
        "hub", repo, column or None, weight, config=config or None, split=split or "train", revision=revision or None
    )


def _local(location: str, column: str | None, weight: float | None) -> DataSource:
    path = Path(location)
    if not location or not path.exists():
        raise UsageError(f"there is no data at {location!r}", _EXAMPLES)
    if path.is_dir():
        shards = _shards(path)
        if shards is not None:
            return DataSource(shards, location, column, weight)
        if column not in (None, REPOSITORIES):
            raise UsageError(
                f"{location} is a folder of files, which have no column {column!r}",
                f"leave #{column} out, or write #{REPOSITORIES} for one document a subfolder",
            )
        return DataSource("folder", location, None, weight, by_repository=column == REPOSITORIES)
    kind = kind_of(path)
    if kind is None:
        known = ", ".join(_SUFFIXES)
        hint = "write one JSON object a line into a .jsonl file" if path.suffix == ".json" else f"use one of {known}"
        raise UsageError(f"{location} has a suffix that is not read as data", hint)
    if kind == "text" and column is not None:
        raise UsageError(f"{location} is plain text, which has no column {column!r}", f"leave #{column} out")
    return DataSource(kind, location, column, weight)


def kind_of(path: Path) -> Kind | None:
    """How a file is read, by its suffix; None for a suffix that isn't known."""
    name = path.name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _shards(folder: Path) -> Kind | None:
    """The kind of a folder's files where all of them are jsonl, or all parquet."""
    kinds = {kind_of(path) for path in folder.rglob("*") if path.is_file() and not hidden(path, folder)}
    return kinds.pop() if kinds in ({"jsonl"}, {"parquet"}) else None


def hidden(path: Path, root: Path) -> bool:
    """Whether a file below `root`, or a folder on the way to it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
