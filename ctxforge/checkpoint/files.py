"""Small file operations that turn operating-system failures into errors a user can act on."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctxforge.errors import CheckpointError, ResourceError

BLOCK = 4 * 1024 * 1024
"""Bytes handled at once when file contents pass through Python."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn an OSError while `name` is read into a CheckpointError (missing, link loop) or a ResourceError."""
    try:
        yield
    except OSError as error:
        raise read_error(error, name) from error


def read_error(error: OSError, name: str) -> CheckpointError | ResourceError:
    """The error to raise when reading `name` failed with `error`."""
    if error.errno == errno.ELOOP:
        return CheckpointError(f"{name} is a symbolic link that leads back to itself.", "Remove or correct the link.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CheckpointError(f"{name} does not exist.", "Check the path, or download the checkpoint again.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ResourceError(f"{name} cannot be read: permission denied.", "Give yourself read permission on it.")
    return ResourceError(f"{name} cannot be read: {error.strerror or error}.", "Check the disk and the file.")


@contextmanager
def open_regular(path: Path, name: str) -> Iterator[int]:
    """A read-only descriptor of a regular file; a pipe or device is refused before it could block.

    Raises:
        CheckpointError: missing, a link loop, or not a regular file.
        ResourceError: not readable.
    """
    with reading(name):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise CheckpointError(f"{name} is not a regular file.", "Replace it by the file itself.")
        yield file
    finally:
        os.close(file)


def pread_exact(file: int, length: int, offset: int, name: str) -> bytes:
    """`length` bytes at `offset`.

    Raises:
        CheckpointError: the file ends before that.
    """
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(file, length, offset)
        if not part:
            raise CheckpointError(f"{name} ends early.", "Download or copy this file again.")
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_small(path: Path, name: str, limit: int) -> bytes:
    """The contents of a file of at most `limit` bytes.

    Raises:
        CheckpointError: missing, not a regular file, or larger than `limit`.
        ResourceError: not readable.
    """
    with open_regular(path, name) as file, reading(name):
        size = os.fstat(file).st_size
        if size > limit:
            raise CheckpointError(
                f"{name} has {size} bytes, more than the limit of {limit}.",
                f"Restore {name} from the original model.",
            )
        return pread_exact(file, size, 0, name)


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's contents, in hex.

    Raises:
        CheckpointError: the file is missing or not a regular file.
        ResourceError: it can't be read.
    """
    with open_regular(Path(path), str(path)) as file, reading(str(path)):
        return descriptor_sha256(file, 0, os.fstat(file).st_size)


def descriptor_sha256(file: int, start: int, end: int) -> str:
    """The SHA-256 of the bytes from `start` to `end` of an open file, in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(BLOCK, max(end - start, 1))))
    while start < end:
        count = os.preadv(file, [buffer[: min(len(buffer), end - start)]], start)
        if count == 0:
            raise OSError(errno.EIO, "the file ends early")
        digest.update(buffer[:count])
        start += count
    return digest.hexdigest()


def out_of_space(error: OSError) -> bool:
    """Whether the error says that the disk, the quota or a file-size limit is exhausted."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def human_bytes(count: int) -> str:
    """A size for messages, in decimal units: 13.5 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
