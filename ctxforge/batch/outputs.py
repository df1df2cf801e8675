"""Outputs on disk: what they held when they were finished, whether they still do, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge import provenance
from ctxforge.checkpoint import file_sha256, verify_integrity
from ctxforge.errors import CtxforgeError
from ctxforge.recipe import ConversionRecipe

Snapshot = dict[str, list[Any]]
"""Of each file size, time of change and, where it was recorded, sha256."""


def identity(out: Path) -> list[int] | None:
    """Which folder stands at `out` now; None where there is none. A folder that is renamed into place is another."""
    try:
        found = out.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino]


def snapshot(out: Path) -> Snapshot:
    """What a finished output holds, with the hashes that its provenance records."""
    recorded = _document(out).get("files")
    hashes: dict[str, Any] = dict(recorded) if isinstance(recorded, Mapping) else {}
    found: Snapshot = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            name, status = path.relative_to(out).as_posix(), path.stat()
            digest = file_sha256(path) if name == provenance.FILE_NAME else hashes.get(name)
            found[name] = [status.st_size, status.st_mtime_ns, digest]
    return found


def difference(out: Path, recorded: Snapshot) -> str | None:
    """How an output differs from its snapshot, by hash where there is one, else by size and time; None if it doesn't.

    Files that came later don't count.
    """
    for name, (size, changed, digest) in recorded.items():
        path = out / name
        try:
            status = path.stat()
            if status.st_size != size:
                return f"{name} has {status.st_size} bytes instead of {size}"
            if digest is None and status.st_mtime_ns != changed:
                return f"{name} was changed"
            if digest is not None and file_sha256(path) != digest:
                return f"{name} has other contents"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, CtxforgeError):
            return f"{name} can't be read"
    return None


def is_ours(out: Path, recorded: Snapshot) -> bool:
    """Whether the folder is the one that a snapshot was taken of, though it may be damaged: it has its provenance."""
    entry = recorded.get(provenance.FILE_NAME)
    try:
        return entry is not None and file_sha256(out / provenance.FILE_NAME) == entry[2]
    except (OSError, CtxforgeError):
        return False


def is_finished(out: Path, recipe: ConversionRecipe) -> bool:
    """Whether a folder that appeared while a job ran is that job's whole result."""
    import dataclasses

    document = _document(out)
    if document.get("recipe") != json.loads(json.dumps(dataclasses.asdict(recipe))):
        return False
    try:
        whole = all(file_sha256(out / name) == digest for name, digest in dict(document.get("files", {})).items())
        return whole and not verify_integrity(out)
    except (CtxforgeError, OSError, TypeError, ValueError):
        return False


def _document(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / provenance.FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
