"""What rewriting a weight file gives, remembered: rewriting is deterministic, so a rerun needn't do it to know it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.cache import cache_root
from ctxforge.publish.files import OnDisk, Rewritten, Wanted
from ctxforge.publish.publication import Results
from ctxforge.version import __version__

_SAME = ("source", "plan", "tool")
_SAMPLE = 512
"""Bytes at a file's start that the Hub wants to see before it says how the file is to be sent."""


@dataclass(frozen=True)
class Remembered:
    """The outcome of one rewriting.

    Attributes:
        sha256: of the file.
        size: in bytes.
        sample: its first bytes.
        tensors: digests of the edited tensors by name.
    """

    sha256: str
    size: int
    sample: bytes
    tensors: Mapping[str, str]


def recall(wanted: Wanted) -> Remembered | None:
    """What an earlier run made of the same file with the same edits; None where none did."""
    try:
        document = json.loads(_place(wanted).read_text(encoding="utf-8"))
        found = Remembered(
            str(document["sha256"]),
            int(document["size"]),
            bytes.fromhex(document["sample"]),
            {str(name): str(digest) for name, digest in document["tensors"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if len(found.sha256) == 2 * hashlib.sha256().digest_size else None


def remember(wanted: Wanted, found: Remembered) -> None:
    """Keep the outcome for the next run; where the cache can't be written, the next run rewrites."""
    place = _place(wanted)
    document = {
        "sha256": found.sha256,
        "size": found.size,
        "sample": found.sample[:_SAMPLE].hex(),
        "tensors": dict(found.tensors),
    }
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        spare = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        spare.write_text(json.dumps(document), encoding="utf-8")
        os.replace(spare, place)  # noqa: PTH105  # atomic


def known_results(
    wanted: Iterable[Wanted], record: Mapping[str, Any] | None, remote: Mapping[str, Any] | None
) -> Results:
    """Digests of rewritten files, from earlier runs here and from the provenance that the target holds.

    Args:
        wanted: all files.
        record: the provenance that is to be published.
        remote: the one in the target; taken at its word where it says the same source and the same plan.
    """
    rewritten = [one for one in wanted if isinstance(one.contents, Rewritten)]
    files: dict[str, str] = {}
    tensors: dict[str, str] = {}
    for one in rewritten:
        found = recall(one)
        if found is not None:
            files[one.path] = found.sha256
            tensors |= found.tensors
    if record is None or remote is None or any(record.get(key) != remote.get(key) for key in _SAME):
        return Results(files, tensors)
    told, edited = remote.get("files"), remote.get("edited_tensors")
    if isinstance(told, Mapping) and isinstance(edited, Mapping):
        for one in rewritten:
            assert isinstance(one.contents, Rewritten)
            names = [patch.info.name for patch in one.contents.patches]
            if one.path in told and one.path not in files and all(name in edited for name in names):
                files[one.path] = str(told[one.path])
                tensors |= {name: str(edited[name]) for name in names}
    return Results(files, tensors)


def _place(wanted: Wanted) -> Path:
    assert isinstance(wanted.contents, Rewritten)
    source = wanted.contents.source
    before = source.sha256 if isinstance(source, OnDisk) else source.held.sha256
    text = json.dumps([__version__, before, [repr(patch) for patch in wanted.contents.patches]])
    return cache_root() / "publish" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
