"""Files that a batch file includes: their contents stand before its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ctxforge.batch.reading import read_file
from ctxforge.batch.specs import SECTIONS, BatchFile
from ctxforge.batch.tree import Node, Place, mapping_of, merged, wrong
from ctxforge.batch.words import refuse_unknown, with_sections

_VERSION = 1
_MOST_FILES = 1000


@dataclass(frozen=True)
class Contents:
    """A batch file with everything it includes.

    Attributes:
        defaults: entries of every job.
        jobs: as written, each a mapping.
        matrices: as written, each a mapping.
        output: folder for outputs that name none, or None.
        files: every file that was read, in order.
    """

    defaults: Node
    jobs: tuple[Node, ...]
    matrices: tuple[Node, ...]
    output: str | None
    files: tuple[Path, ...]


def read_batch(path: Path) -> Contents:
    """Read a batch file and what it includes, each file once, an included file before the one that includes it.

    Raises:
        UsageError: a file is missing or malformed, has an unknown key or another version, or includes itself.
        ResourceError: a file can't be read.
    """
    reader = _Reader()
    reader.read(path, ())
    return Contents(
        reader.defaults, tuple(reader.jobs), tuple(reader.matrices), reader.output, tuple(reader.done.values())
    )


class _Reader:
    def __init__(self) -> None:
        self.defaults = mapping_of({}, Place("defaults"))
        self.jobs: list[Node] = []
        self.matrices: list[Node] = []
        self.output: str | None = None
        self.done: dict[Path, Path] = {}

    def read(self, path: Path, chain: tuple[Path, ...]) -> None:
        same = Path(os.path.realpath(path))
        if same in self.done:
            return
        if len(self.done) + len(chain) > _MOST_FILES:
            raise wrong(Place(str(path)), f"more than {_MOST_FILES} files are included", "include fewer")
        root = read_file(path)
        refuse_unknown(root, BatchFile, "a batch file")
        _check_version(root)
        for node in root.mapping["include"].items("include") if "include" in root.mapping else ():
            if not isinstance(node.value, str) or not node.value:
                raise wrong(node.place, "an include is no path", "write the path of a file, relative to this one")
            self._include(path, node, chain)
        self.done[same] = path
        self._take(root)

    def _include(self, path: Path, node: Node, chain: tuple[Path, ...]) -> None:
        target = path.parent / str(node.value)
        if not target.exists():
            raise wrong(node.place, f"the included file {target} does not exist", "paths are relative to this file")
        reading = (*chain, path)
        if os.path.realpath(target) in (os.path.realpath(one) for one in reading):
            shown = " -> ".join(str(one) for one in (*reading, target))
            raise wrong(node.place, f"includes go in a circle: {shown}", "leave one of them out")
        self.read(target, reading)

    def _take(self, root: Node) -> None:
        entries = root.mapping
        if "defaults" in entries:
            entries["defaults"].entries("defaults")
            self.defaults = merged(self.defaults, with_sections(entries["defaults"]), SECTIONS)
        if "jobs" in entries:
            jobs = entries["jobs"].items("jobs")
            for job in jobs:
                job.entries("a job")
            self.jobs += jobs
        if "matrix" in entries:
            found = entries["matrix"]
            several = found.value if isinstance(found.value, list) else [found]
            for matrix in several:
                matrix.entries("a matrix")
            self.matrices += several
        if "output" in entries:
            folder = entries["output"]
            if not isinstance(folder.value, str) or not folder.value:
                raise wrong(folder.place, "output is no path", "name the folder that outputs are written into")
            self.output = folder.value


def _check_version(root: Node) -> None:
    found = root.mapping.get("version")
    if found is None:
        raise wrong(root.place, "the file says no version", f"begin with `version: {_VERSION}`")
    if found.value != _VERSION or isinstance(found.value, bool):
        raise wrong(
            found.place,
            f"version {found.value} of the format is not known",
            f"this ctxforge reads version {_VERSION}: write that, or use a newer ctxforge",
        )
