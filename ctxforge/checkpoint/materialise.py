"""Bring an untouched file into the output by the cheapest way that is safe: share its blocks, link it, or copy it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError
from .files import BLOCK, open_regular, reading
from .staging import FILE_MODE

COPY_CHUNK = 64 * 1024 * 1024
"""Bytes that the kernel copies between two progress reports."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

# What copy_file_range answers where it can't work between these two files; reading and writing still can.
_NO_KERNEL_COPY = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO, errno.ETXTBSY}
)


def materialise(
    source: Path,
    target: Path,
    name: str,
    size: int,
    *,
    link: bool,
    advance: Callable[[int], None],
    before_copy: Callable[[], None] = lambda: None,
) -> str:
    """Make `target` hold what `source` holds.

    Args:
        source: the file; links are resolved first, so that a Hugging Face cache's blob is cloned or linked.
        target: a path that doesn't exist yet, in a folder that does.
        name: the file's name for messages.
        size: the size that the source had when it was read.
        link: hardlink where blocks can't be shared.
        advance: called with the bytes done, as they are done.
        before_copy: called before bytes are really copied, to check that there is space.

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
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            cloned = _clone(reader, writer)
            if not cloned and not (link and _link(source, target)):
                before_copy()
                copy_contents(reader, writer, name, size, advance)
                return "copied"
        finally:
            os.close(writer)
    advance(size)
    return "cloned" if cloned else "linked"


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


def copy_contents(reader: int, writer: int, name: str, size: int, advance: Callable[[int], None]) -> None:
    """Copy `size` bytes in the kernel where it can, else through a small buffer.

    Raises:
        CheckpointError: the source ends early.
        OSError: writing failed.
    """
    done = 0
    kernel_copy = getattr(os, "copy_file_range", None)
    while kernel_copy is not None and done < size:
        try:
            count = kernel_copy(reader, writer, min(COPY_CHUNK, size - done), done, done)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            break
        if count == 0:
            break
        done += count
        advance(count)
    if done < size:
        buffer = memoryview(bytearray(BLOCK))
        while done < size:
            with reading(name):
                count = os.preadv(reader, [buffer[: min(BLOCK, size - done)]], done)
            if count == 0:
                raise _changed(name)
            pwrite_all(writer, buffer[:count], done)
            done += count
            advance(count)


def pwrite_all(writer: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(writer, view, offset)
        view, offset = view[count:], offset + count
