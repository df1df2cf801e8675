"""One weight file at a time on this disk: downloaded, edited, handed over, deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctxforge.checkpoint import file_sha256
from ctxforge.checkpoint.cache import cache_root
from ctxforge.checkpoint.files import read_error
from ctxforge.checkpoint.materialise import materialise
from ctxforge.checkpoint.relayout import file_rewrites, moves
from ctxforge.checkpoint.staging import locked, writing
from ctxforge.checkpoint.write import hash_tensors
from ctxforge.errors import CtxforgeError
from ctxforge.publish.connection import Connection
from ctxforge.publish.download import cached, weight_file
from ctxforge.publish.files import OnDisk, OnHub, Rewritten, Wanted
from ctxforge.publish.memory import Remembered, recall, remember
from ctxforge.publish.repository import Repository

_SAMPLE = 512
_RESULT = "result"


def work_folder(repo: str) -> Path:
    """Where weight files of a publication to `repo` are for a while."""
    return cache_root() / "publish" / "work" / repo.replace("/", "--")


@contextmanager
def working(folder: Path) -> Iterator[Path]:
    """The work folder, held against other runs; a finished download in it is kept only while its run may go on.

    Raises:
        ResourceError: it can't be made, or another run holds it.
    """
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        with writing(folder):
            folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fetched(connection: Connection, source: Repository, wanted: Wanted, folder: Path) -> Iterator[OnDisk]:
    """An unchanged file of the source on this disk, as long as the body runs."""
    assert isinstance(wanted.contents, OnHub)
    held = wanted.contents.held
    path = cached(source, held)
    if path is not None:
        yield OnDisk(path, held.size)
        return
    path = weight_file(connection, source, held, folder)
    yield OnDisk(path, held.size)
    path.unlink(missing_ok=True)  # not after a failure: the next run goes on with it


@contextmanager
def rewritten(
    connection: Connection, source: Repository | None, wanted: Wanted, folder: Path
) -> Iterator[tuple[Path, Remembered]]:
    """A weight file with its tensors edited, as long as the body runs, and what is to be remembered of it.

    What was downloaded is edited in place, unless it grows; what was here before is copied first.

    Raises:
        CheckpointError: an edit overflows, or the file is damaged.
        HubError: it can't be downloaded.
        ResourceError: no space.
    """
    result = folder / _RESULT / wanted.path
    before = recall(wanted)
    if before is not None and _is(result, before):
        found = before
    else:
        found = _rewrite(connection, source, wanted, folder, result)
        remember(wanted, found)
    yield result, found
    result.unlink(missing_ok=True)  # not after a failure: the next run goes on with it


def _rewrite(
    connection: Connection, source: Repository | None, wanted: Wanted, folder: Path, result: Path
) -> Remembered:
    contents = wanted.contents
    assert isinstance(contents, Rewritten)
    inner = contents.source
    ours = False
    if isinstance(inner, OnDisk):
        before = inner.path
    else:
        assert source is not None
        here = cached(source, inner.held)
        ours = here is None
        before = here or weight_file(connection, source, inner.held, folder)
    try:
        with writing(folder, contents.size):
            result.parent.mkdir(parents=True, exist_ok=True)
            result.unlink(missing_ok=True)
            if ours and not moves(contents.patches):
                before.rename(result)
                _edit_in_place(result, wanted)
            else:
                rewrites = file_rewrites(before, wanted.path, contents.patches)
                materialise(
                    before, result, wanted.path, inner.size, link=False, advance=lambda _: None, rewrites=rewrites
                )
        return _remembered(result, wanted)
    finally:
        if ours:
            before.unlink(missing_ok=True)


def _is(path: Path, known: Remembered) -> bool:
    try:
        return path.stat().st_size == known.size and file_sha256(path) == known.sha256
    except (OSError, CtxforgeError):
        return False


def _edit_in_place(path: Path, wanted: Wanted) -> None:
    """Apply edits that change no size: each block is read before it is written."""
    assert isinstance(wanted.contents, Rewritten)
    rewrites = file_rewrites(path, wanted.path, wanted.contents.patches)
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise read_error(error, wanted.path) from error
    try:
        for rewrite in rewrites:
            rewrite.write(file, file, 0)
    finally:
        os.close(file)


def _remembered(path: Path, wanted: Wanted) -> Remembered:
    assert isinstance(wanted.contents, Rewritten)
    tensors, _ = hash_tensors(path, wanted.path, wanted.contents.patches)
    with path.open("rb") as file:
        sample = file.read(_SAMPLE)
    return Remembered(file_sha256(path), path.stat().st_size, sample, tensors)
