"""Bring an untouched file into the output by the cheapest way that is safe: share its blocks, link it, or copy it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

from ctxforge.checkpoint.files import BLOCK, open_regular, reading
from ctxforge.checkpoint.staging import FILE_MODE
from ctxforge.errors import CheckpointError

COPY_CHUNK = 16 * 1024 * 1024
"""Bytes that the kernel copies between two progress reports; the disk starts on them while the next are copied."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

# What copy_file_range answers where it can't work between these two files; reading and writing still can.
_NO_KERNEL_COPY = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO, errno.ETXTBSY}
)


@dataclass(frozen=True)
class Rewrite:
    """A range of a file that isn't copied.

    Args:
        start, stop: the range in the source.
        write: what writes it: called with the two open files and with how much farther into the target than into the
            source it begins.
        growth: how many more bytes than the range has are written; everything after it moves by as much.
    """

    start: int
    stop: int
    write: Callable[[int, int, int], None]
    growth: int = 0


def materialise(
    source: Path,
    target: Path,
    name: str,
    size: int,
    *,
    link: bool,
    advance: Callable[[int], None],
    before_copy: Callable[[], None] = lambda: None,
    rewrites: Sequence[Rewrite] = (),
) -> str:
    """Make `target` hold what `source` holds, with some ranges rewritten.

    Args:
        source: the file; links are resolved first, so that a Hugging Face cache's blob is cloned or linked.
        target: a path that doesn't exist yet, in a folder that does.
        name: the file's name for messages.
        size: the size that the source had when it was read.
        link: hardlink where blocks can't be shared; not where something is rewritten.
        advance: called with the bytes done, as they are done.
        before_copy: called before bytes are really copied, to check that there is space.
        rewrites: the ranges that get other contents, in order and disjoint.

    Returns:
        "cloned", "linked" or "copied".

    Raises:
        CheckpointError: the source changed since it was read.
        ResourceError: the source can't be read.
        OSError: writing failed.
    """
    with reading(name):
        source = Path(os.path.realpath(source))
    with open_regular(source, name) as reader:
        if os.fstat(reader).st_size != size:
            raise _changed(name)
        writer = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            moves = any(rewrite.growth for rewrite in rewrites)
            cloned = not moves and _clone(reader, writer)
            if not cloned and link and not rewrites and _link(source, target):
                advance(size)
                return "linked"
            if not cloned:
                before_copy()
            with _beside(rewrites, reader, writer) as finish:
                done = 0 if not cloned else size
                shift = 0
                early = _EarlyWriteback(writer)

                def reached(position: int) -> None:
                    nonlocal done
                    early.reached(position + shift)
                    advance(position - done)
                    done = position

                if not cloned:
                    for rewrite in rewrites:
                        copy_range(reader, writer, name, done, rewrite.start, reached, shift)
                        done = rewrite.stop
                        shift += rewrite.growth
                    copy_range(reader, writer, name, done, size, reached, shift)
                finish()
            rewritten = sum(rewrite.stop - rewrite.start + rewrite.growth for rewrite in rewrites)
            advance(size if cloned else rewritten)
        finally:
            os.close(writer)
    return "cloned" if cloned else "copied"


@contextmanager
def _beside(rewrites: Sequence[Rewrite], reader: int, writer: int) -> Iterator[Callable[[], None]]:
    """Run `rewrites` one after another in a thread of their own while the body copies the ranges between them.

    Scaling keeps a processor busy and copying waits for the kernel, so the two overlap; both use offsets of their own,
    never the files' positions. The body calls what it is given to wait for the rewrites and to hear their errors.
    """
    if not rewrites:
        yield lambda: None
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(max_workers=1)
    shifts = accumulate((rewrite.growth for rewrite in rewrites), initial=0)
    try:
        pending = [
            pool.submit(rewrite.write, reader, writer, shift)
            for rewrite, shift in zip(rewrites, shifts, strict=False)  # the last shift is that of the file's rest
        ]

        def finish() -> None:
            for future in pending:
                future.result()

        yield finish
    finally:
        pool.shutdown(cancel_futures=True)


def _changed(name: str) -> CheckpointError:
    return CheckpointError(f"{name} changed while it was being converted.", "Let the source settle, then run again.")


def _clone(reader: int, writer: int) -> bool:
    """Share the source's blocks, on file systems that can (XFS, Btrfs, bcachefs, ZFS)."""
    import fcntl

    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True


def _link(source: Path, target: Path) -> bool:
    """Replace the empty target by a hardlink; False across file systems or where links aren't allowed."""
    spare = target.with_name(f"{target.name}.link")
    try:
        os.link(source, spare)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS):
            return False
        raise
    spare.replace(target)
    return True


def copy_range(
    reader: int, writer: int, name: str, start: int, stop: int, reached: Callable[[int], None], shift: int = 0
) -> None:
    """Copy the bytes from `start` to `stop`, in the kernel where it can, else through a small buffer.

    Args:
        reader, writer: the open files.
        name: the file's name for messages.
        start, stop: the range in the source.
        reached: called with the position in the source that the copy has come to.
        shift: how much farther into the target the bytes go.

    Raises:
        CheckpointError: the source ends early.
        OSError: writing failed.
    """
    position = start
    kernel_copy = getattr(os, "copy_file_range", None)
    while kernel_copy is not None and position < stop:
        try:
            count = kernel_copy(reader, writer, min(COPY_CHUNK, stop - position), position, position + shift)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            break
        if count == 0:
            break
        position += count
        reached(position)
    if position < stop:
        buffer = memoryview(bytearray(min(BLOCK, stop - position)))
        while position < stop:
            with reading(name):
                count = os.preadv(reader, [buffer[: stop - position]], position)
            if count == 0:
                raise _changed(name)
            pwrite_all(writer, buffer[:count], position + shift)
            position += count
            reached(position)


class _EarlyWriteback:
    """Lets the disk begin with what is written while more is copied, so that the fsync at the end finds little left."""

    def __init__(self, writer: int) -> None:
        self.writer = writer
        self.begun = 0

    def reached(self, position: int) -> None:
        """Everything before `position` is written; waits for nothing."""
        if position - self.begun >= COPY_CHUNK:
            starter = _sync_file_range()
            if starter is not None:
                starter(self.writer, self.begun, position - self.begun)
            self.begun = position


@cache
def _sync_file_range() -> Callable[[int, int, int], None] | None:
    """Linux's sync_file_range with SYNC_FILE_RANGE_WRITE; None elsewhere."""
    import ctypes

    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def start(writer: int, position: int, count: int) -> None:
        function(writer, position, count, 2)  # a hint: its result doesn't matter

    return start


def pwrite_all(writer: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(writer, view, offset)
        view, offset = view[count:], offset + count
