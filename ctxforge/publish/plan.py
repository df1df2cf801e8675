"""What a publication will do, before it does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxforge.checkpoint import human_bytes
from ctxforge.publish.routes import MEANINGS, Route, Step

_NAMED = 3


@dataclass(frozen=True)
class PushPlan:
    """Everything about a publication that can be told, and refused, in advance.

    Attributes:
        repo: owner/name of the target.
        revision: the branch.
        creates: the repository is new.
        private: whether the target is, or will be, private; None for the owner's default.
        pull_request: a pull request is opened instead of a commit.
        source: owner/name@commit that files are copied from; None without.
        steps: one for each file.
        deletes: files of the target that belong to an earlier push and not to this one.
        disk: bytes that are needed on disk at once.
        warnings: what the user should know.
        notes: remarks.
    """

    repo: str
    revision: str
    creates: bool
    private: bool | None
    pull_request: bool
    source: str | None
    steps: tuple[Step, ...]
    deletes: tuple[str, ...]
    disk: int
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether the target holds all of it already."""
        return not self.deletes and all(step.route == "kept" for step in self.steps)

    @property
    def to_download(self) -> int:
        """Bytes from the Hub."""
        return sum(step.download for step in self.steps)

    @property
    def to_upload(self) -> int:
        """Bytes to the Hub."""
        return sum(step.upload for step in self.steps)

    @property
    def copied(self) -> int:
        """Bytes that the server copies by itself."""
        return sum(step.wanted.size for step in self.steps if step.route == "copied")

    def of_route(self, route: Route) -> list[Step]:
        """The steps on one route."""
        return [step for step in self.steps if step.route == route]

    def rows(self) -> list[tuple[str, str]]:
        """Name and value lines for people."""
        where = f"{self.repo} ({'new' if self.creates else 'existing'}{_visibility(self.private)})"
        rows = [("to", where if self.revision == "main" else f"{where}, branch {self.revision}")]
        if self.source is not None:
            rows.append(("source", self.source))
        for route, meaning in MEANINGS.items():
            found = self.of_route(route)
            if found:
                size = human_bytes(sum(step.wanted.size for step in found))
                rows.append((meaning, f"{size} in {_files(found)}{_reasons(found)}"))
        if self.deletes:
            rows.append(("removed there", ", ".join(self.deletes)))
        rows += [("to download", human_bytes(self.to_download)), ("to upload", human_bytes(self.to_upload))]
        return [*rows, ("needed on disk", human_bytes(self.disk))]

    def document(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "repo": self.repo,
            "revision": self.revision,
            "creates": self.creates,
            "private": self.private,
            "pull_request": self.pull_request,
            "source": self.source,
            "nothing_to_do": self.nothing_to_do,
            "bytes": {
                "to_download": self.to_download,
                "to_upload": self.to_upload,
                "copied_on_server": self.copied,
                "on_disk": self.disk,
            },
            "files": [
                {
                    "path": step.wanted.path,
                    "size": step.wanted.size,
                    "route": step.route,
                    "download": step.download,
                    "upload": step.upload,
                    "reason": step.reason,
                }
                for step in self.steps
            ],
            "deletes": list(self.deletes),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def _visibility(private: bool | None) -> str:
    return "" if private is None else ", private" if private else ", public"


def _files(steps: Sequence[Step]) -> str:
    if len(steps) > _NAMED:
        return f"{len(steps)} files"
    return ", ".join(step.wanted.path for step in steps)


def _reasons(steps: Sequence[Step]) -> str:
    found = sorted({step.reason for step in steps if step.reason})
    return f" ({'; '.join(found)})" if found else ""
