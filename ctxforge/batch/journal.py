"""The journal of a batch: one JSON object a line, synced before anything goes on, so that a kill loses at most a line.

A torn last line is cut off when the journal is opened again. The lock dies with the process and with its workers, which
hold it too: as long as one of them still writes, no other run goes on.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ctxforge.checkpoint.staging import FILE_MODE, sync, writing
from ctxforge.errors import ResourceError

SUFFIX = ".journal.jsonl"
_PATIENCE = 5.0


@dataclass
class Record:
    """What a journal knows of one job.

    Attributes:
        stages: the last finished run of each stage, by its name: at least `key` and `out`.
        begun: the start of a run that has no end yet.
        ended: the last end.
    """

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None


class Journal:
    """An open, locked journal. Use it in a `with`.

    Args:
        path: the file; its folder is made.
        fresh: forget what is there.

    Raises:
        ResourceError: another run holds it, or it can't be written.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._made = not path.parent.is_dir()
        self._torn = False
        self.descriptor = _opened(path)
        try:
            with writing(path.parent):
                data = b"" if fresh else _read(self.descriptor)
                whole = data[: data.rfind(b"\n") + 1]
                os.ftruncate(self.descriptor, len(whole))
                os.lseek(self.descriptor, len(whole), os.SEEK_SET)
                os.fsync(self.descriptor)
                sync(path.parent)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.records = replay(whole)

    def append(self, *events: Mapping[str, Any]) -> None:
        """Add lines; they are on the disk when this returns.

        Raises:
            ResourceError: the disk is full or failed.
        """
        data = b"".join(json.dumps(event, ensure_ascii=True).encode() + b"\n" for event in events)
        if self._torn:  # an interrupt, or a full disk, cut the last line
            data = b"\n" + data
        self._torn = True
        with writing(self.path.parent, len(data)):
            view = memoryview(data)
            while view:
                view = view[os.write(self.descriptor, view) :]
            os.fsync(self.descriptor)
        self._torn = False

    def close(self) -> None:
        """Give the lock back; a journal in which nothing stands goes."""
        if os.fstat(self.descriptor).st_size == 0:
            with suppress(OSError):
                self.path.unlink()
            if self._made:
                with suppress(OSError):
                    self.path.parent.rmdir()
        os.close(self.descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def replay(data: bytes) -> dict[str, Record]:
    """What the lines of a journal say of each job; a line that is not whole says nothing."""
    records: dict[str, Record] = {}
    for line in data.splitlines():
        try:
            event = json.loads(line)
            job, kind = str(event["job"]), event["event"]
        except (ValueError, KeyError, TypeError):
            continue
        record = records.setdefault(job, Record())
        if kind == "start":
            record.begun = event
        elif kind == "stage" and isinstance(event.get("stage"), str) and "key" in event:
            record.stages[event["stage"]] = event
        elif kind == "end":
            record.begun, record.ended = None, event
    return records


def _read(descriptor: int) -> bytes:
    parts = []
    os.lseek(descriptor, 0, os.SEEK_SET)
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _opened(path: Path) -> int:
    """The journal's file, locked."""
    while True:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            _lock(descriptor, path)
            # The run before may have removed it, empty, between our open and our lock: then it locks nobody out.
            if same_file(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def same_file(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _lock(descriptor: int, path: Path) -> None:
    """Lock the journal; waits a moment, because workers of a run that was just killed end in their own time."""
    import fcntl

    latest = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > latest:
                raise ResourceError(
                    f"Another run of ctxforge is using the journal {path}.",
                    "Wait for it to end, or choose another --output folder.",
                ) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return
            raise
