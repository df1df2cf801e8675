"""Disk that a publication needs: one weight file at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctxforge.checkpoint import human_bytes
from ctxforge.checkpoint.staging import free_bytes
from ctxforge.errors import ResourceError
from ctxforge.publish.files import Rewritten
from ctxforge.publish.routes import Step


def needed_space(steps: Iterable[Step]) -> int:
    """Bytes on disk at once: the largest weight file that must be here to be uploaded, edited in place where it can."""
    return max((_of_step(step) for step in steps), default=0)


def _of_step(step: Step) -> int:
    contents = step.wanted.contents
    if step.route == "fetched":
        return step.download
    if step.route != "rewritten" or not isinstance(contents, Rewritten):
        return 0
    in_place = step.download > 0 and contents.size == contents.source.size
    return contents.size if in_place or step.download == 0 else contents.source.size + contents.size


def refuse_without_space(folder: Path, needed: int) -> None:
    """Fail before the disk is full rather than after.

    Raises:
        ResourceError: less than `needed` bytes are free where `folder` is, or will be.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = free_bytes(place)
    if needed and free is not None and free < needed:
        raise ResourceError(
            f"Publishing needs {human_bytes(needed)} in {folder}, and {human_bytes(free)} are free.",
            "Free some space, or set CTXFORGE_CACHE to a folder on another disk.",
        )
