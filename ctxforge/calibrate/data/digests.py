"""Which content a source has, without reading it anew each time.

A file is hashed once. Its digest is remembered with its size, inode and times of change, and taken again while they
stay; so a cache of tokens is found by content, whatever the path, and a warm start reads no data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.calibrate.data.documents import Progress
from ctxforge.calibrate.data.files import files_of, reading
from ctxforge.calibrate.data.hub import pinned_revision
from ctxforge.calibrate.data.spec import DataSource
from ctxforge.checkpoint.cache import cache_root
from ctxforge.errors import ResourceError

_SETTLED_NS = 2_000_000_000
"""A file that changed so recently may change again within one tick of the file system's clock: it isn't remembered."""

Stamp = list[int]


@dataclass(frozen=True)
class SourceDigest:
    """What a source held when it was looked at.

    Attributes:
        sha256: of the files' contents with their names below the folder, or of the Hub data set's pinned name.
        revision: the commit of a Hub data set.
        stamps: size, inode and times of change of each file, by name.
    """

    sha256: str
    revision: str | None
    stamps: dict[str, Stamp]

    def require_unchanged(self, source: DataSource) -> None:
        """Refuse a source whose files changed since.

        Raises:
            ResourceError: a file was changed, added or removed.
        """
        if source.kind != "hub" and {name: _stamp(path) for name, path in files_of(source)} != self.stamps:
            raise ResourceError(f"{source.name} was changed while it was read", "run the command again")


def digest_source(source: DataSource, progress: Progress | None = None) -> SourceDigest:
    """The digest of a source's content.

    Raises:
        UsageError: a folder without files.
        ResourceError: a file that can't be read.
        HubError: a Hub data set's revision can't be found out.
    """
    if source.kind == "hub":
        revision = pinned_revision(source)
        named = [source.location, source.config, source.split, revision]
        return SourceDigest(hashlib.sha256(json.dumps(named).encode()).hexdigest(), revision, {})
    files = files_of(source)
    stamps = {name: _stamp(path) for name, path in files}
    memo = (
        cache_root() / "tokens" / "digests" / f"{hashlib.sha256(os.fsencode(source.path.resolve())).hexdigest()}.json"
    )
    known = _read(memo)
    digests: dict[str, str] = {}
    total, done = sum(stamp[0] for stamp in stamps.values()), 0
    for name, path in files:
        kept = known.get(name)
        digests[name] = kept[1] if kept and kept[0] == stamps[name] else _sha256(path)
        done += stamps[name][0]
        if progress is not None and not kept:
            progress("hashing the data", done, total)
    settled = time.time_ns() - _SETTLED_NS
    fresh = {name: [stamps[name], digests[name]] for name in stamps if max(stamps[name][2:]) < settled}
    if fresh != known:
        _write(memo, fresh)
    # A single file is its content alone, so that a copy under another name is the same data.
    content = [digests[name] if source.path.is_file() else [name, digests[name]] for name in digests]
    return SourceDigest(hashlib.sha256(json.dumps(content).encode()).hexdigest(), None, stamps)


def _stamp(path: Path) -> Stamp:
    with reading(path):
        status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(memo: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(memo.read_bytes())
        if isinstance(found, dict) and all(isinstance(one, list) and len(one) == 2 for one in found.values()):
            return found
    return {}


def _write(memo: Path, value: dict[str, Any]) -> None:
    """Remember the digests; where that fails, the next start hashes again."""
    part = memo.with_name(f"{memo.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(memo)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
