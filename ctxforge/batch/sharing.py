"""One copy of a source, whose files the outputs of a batch share.

Where files can't share blocks, twenty-four config-only conversions of one source would copy its weights twenty-four
times. Instead the source is copied once into a hidden folder, and outputs link to that: the source's own files are no
output's. The folder goes when the run ends; what outputs link to stays with them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ctxforge.batch.planning import Planned
from ctxforge.checkpoint import Checkpoint, Edits, write_checkpoint

WORTH = 1_000_000
"""Bytes of untouched weights from which sharing is worth its while."""


class SharedCopies:
    """Makes and removes the copies.

    Args:
        folder: where outputs go.
        stem: of the batch file, so that two batches with one folder don't meet.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        self._prefix = f".{stem}.source-"
        self._wanted: frozenset[str] = frozenset()

    def expect(self, jobs: Sequence[Planned]) -> None:
        """Which jobs there will be: what only one of them could take is not worth a copy."""
        users = Counter(job.fingerprint for job in jobs if _shares(job))
        self._wanted = frozenset(name for name, count in users.items() if count > 1)

    def wanted(self, job: Planned) -> bool:
        """Whether the job is to take its files from a copy."""
        return _shares(job) and job.fingerprint in self._wanted

    def copy_of(self, job: Planned, checkpoint: Checkpoint) -> Path:
        """The copy of the job's source; made where it isn't there yet.

        Raises:
            CtxforgeError: see `write_checkpoint`.
        """
        path = self._path(job)
        if not path.is_dir():
            write_checkpoint(checkpoint, Edits(), path)
        return path

    def made(self, job: Planned) -> Path | None:
        """The copy of the job's source, if it is there already."""
        path = self._path(job)
        return path if path.is_dir() else None

    def close(self) -> None:
        """Remove the copies, and what killed runs left of them."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if path.name.startswith((self._prefix, f".{self._prefix}")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _path(self, job: Planned) -> Path:
        return self._folder / f"{self._prefix}{job.fingerprint.removeprefix('commit ')[:32]}"


def _shares(job: Planned) -> bool:
    spec = job.job.spec
    return spec.share and not spec.link and spec.calibrate is None and job.shareable >= WORTH
