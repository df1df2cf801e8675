"""How each file gets to the Hub, and what that costs: the cheapest way that is certain to give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ctxforge.publish.files import Data, Held, OnDisk, OnHub, Rewritten, Wanted, already_held
from ctxforge.publish.repository import Repository

Route = Literal["kept", "copied", "sent", "passed", "uploaded", "fetched", "rewritten"]

MEANINGS: Mapping[Route, str] = {
    "kept": "there already",
    "copied": "copied on the server",
    "sent": "sent with the commit",
    "passed": "small files of the source, read and sent with the commit",
    "uploaded": "uploaded from here",
    "fetched": "downloaded from the source and uploaded, one at a time",
    "rewritten": "rewritten and uploaded, one at a time",
}


@dataclass(frozen=True)
class Step:
    """One file and its way.

    Attributes:
        wanted: the file.
        route: a key of `MEANINGS`.
        download: bytes from the Hub, of what isn't in the cache.
        upload: bytes to the Hub.
        reason: why not a cheaper route; empty where there is none.
        copy: of a copied file, what is copied.
    """

    wanted: Wanted
    route: Route
    download: int = 0
    upload: int = 0
    reason: str = ""
    copy: Held | None = None


@dataclass(frozen=True)
class Refused:
    """Files that the server would not copy, by path, and why: they are fetched and uploaded instead."""

    paths: frozenset[str] = frozenset()
    reason: str = ""


def find_route(
    wanted: Wanted,
    source: Repository | None,
    target: Repository | None,
    *,
    results: Mapping[str, str],
    cached: bool = False,
    refused: Refused | None = None,
) -> Step:
    """The route of one file.

    Args:
        wanted: the file.
        source: the repository that it may be copied from.
        target: where it goes; None for a new repository.
        results: SHA-256 of rewritten files by path, as far as they are known.
        cached: its source is in the cache, so that downloading costs nothing.
        refused: what the server would not copy.
    """
    contents = wanted.contents
    if already_held(wanted, None if target is None else target.files.get(wanted.path), results):
        return Step(wanted, "kept")
    if isinstance(contents, Rewritten):
        from_hub = isinstance(contents.source, OnHub) and not cached
        return Step(wanted, "rewritten", contents.source.size if from_hub else 0, contents.size, contents.reason)
    if isinstance(contents, OnHub) and contents.held.sha256 is None:
        return Step(wanted, "passed", 0 if cached else contents.size, in_commit(contents.size))
    held, why_not = _copyable(wanted, source, target, refused or Refused())
    if held is not None:
        return Step(wanted, "copied", copy=held)
    if isinstance(contents, Data):
        return Step(wanted, "sent", upload=in_commit(contents.size))
    if isinstance(contents, OnDisk):
        return Step(wanted, "uploaded", upload=contents.size, reason=why_not)
    return Step(wanted, "fetched", 0 if cached else contents.size, contents.size, why_not)


def _copyable(
    wanted: Wanted, source: Repository | None, target: Repository | None, refused: Refused
) -> tuple[Held | None, str]:
    """The file of the source that can be copied, or the reason why none can."""
    contents = wanted.contents
    if source is None:
        return None, "no source on the Hub"
    held = contents.held if isinstance(contents, OnHub) else source.files.get(wanted.path)
    if held is None or held.size != wanted.size:
        return None, "the source has no such file"
    if held.sha256 is None:
        return None, "the source keeps it as a small file"
    if isinstance(contents, (Data, OnDisk)) and contents.sha256 != held.sha256:
        return None, "it differs from the source's"
    if wanted.path in refused.paths:
        return None, refused.reason
    same_repository = target is not None and target.repo == source.repo
    if held.xet is None and not same_repository:
        return None, "the source's storage can't copy it (no xet hash)"
    return held, ""


def in_commit(size: int) -> int:
    """Bytes of a small file inside a commit: base64."""
    return 4 * -(-size // 3)
