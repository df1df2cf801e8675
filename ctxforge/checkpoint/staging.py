"""A folder that appears under its final name complete, or not at all.

Everything is written into a hidden sibling `.<name>.ctxforge-<pid>-<random>`, synced, and renamed once. A lock file
held for the length of the run keeps a second run off the same output; since only the holder of the lock creates such
siblings, the next holder may remove the ones that a killed run left behind.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctxforge.checkpoint.files import human_bytes, out_of_space
from ctxforge.errors import CtxforgeError, ResourceError

FILE_MODE = 0o644
"""Mode of new files before the umask."""

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def staging_pattern(out: Path) -> re.Pattern[str]:
    """Matches the names of the staging folders of `out`."""
    return re.compile(rf"\.{re.escape(out.name)}\.ctxforge-\d+-[0-9a-f]{{8}}(-old)?")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of the output `out`, and clear away what dead runs left.

    The lock is advisory and dies with the process. On file systems without locks the run goes on unlocked.

    Raises:
        ResourceError: another run holds it, or the parent folder isn't writable.
    """
    path = out.parent / f".{out.name}.ctxforge.lock"
    while True:
        with writing(out.parent):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            ours = _lock(file, out)
            # The previous holder may have unlinked the file between our open and our lock: then it locks nobody out.
            if ours and not _same_file(path, file):
                os.close(file)
                continue
            if ours:
                _recover(out)
            break
        except BaseException:
            os.close(file)
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _lock(file: int, out: Path) -> bool:
    """Lock the open file; False where the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResourceError(
            f"Another run of ctxforge is writing {out}.", "Wait for it to end, or choose another output folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise write_error(error, out.parent) from error
        return False
    return True


def _same_file(path: Path, file: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(file)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _recover(out: Path) -> None:
    """Remove the staging folders of dead runs; put an old output back where a swap was cut in half."""
    pattern = staging_pattern(out)
    with writing(out.parent):
        found = sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))
    for stale in found:
        if stale.name.endswith("-old") and not out.exists():
            with writing(out.parent):
                stale.rename(out)
        elif stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def staged(out: Path, needed: int = 0) -> Iterator[Path]:
    """A fresh staging folder for `out`; removed when the body fails, KeyboardInterrupt included.

    The body must end with `commit`. An OSError inside becomes a ResourceError; where the disk is full, it names the
    `needed` bytes.
    """
    folder = out.parent / f".{out.name}.ctxforge-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with writing(out.parent, needed):
            folder.mkdir()
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def writing(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn an OSError while something is written below `folder` into a ResourceError."""
    try:
        yield
    except CtxforgeError:
        raise
    except OSError as error:
        raise write_error(error, folder, needed) from error


def write_error(error: OSError, folder: Path, needed: int = 0) -> ResourceError:
    """The error to raise when writing below `folder` failed with `error`."""
    if out_of_space(error):
        free = free_bytes(folder)
        have = f", {human_bytes(free)} are free" if free is not None else ""
        want = f": {human_bytes(needed)} are needed{have}" if needed else ""
        return ResourceError(
            f"Out of disk space in {folder}{want} ({error.strerror}).", "Free some space, or write to another disk."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(
            f"{folder} is not writable: {error.strerror}.", "Choose an output folder you may write to."
        )
    what = f" ({error.filename})" if error.filename else ""
    return ResourceError(
        f"Writing to {folder} failed: {error.strerror or error}{what}.", "Check the disk and try again."
    )


def free_bytes(folder: Path) -> int | None:
    """Free bytes on the file system of `folder`; None where it can't be asked."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def write_new(path: Path, data: bytes) -> None:
    """Write `data` to a new file; its folders are made, an existing file is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    finally:
        os.close(file)


def sync_tree(folder: Path, skip: frozenset[str] = frozenset()) -> None:
    """fsync every file below `folder`, except the relative names in `skip`, and every folder."""
    for current, folders, files in os.walk(folder, topdown=False):
        base = Path(current)
        for name in files:
            if (base / name).relative_to(folder).as_posix() not in skip:
                sync(base / name)
        for name in folders:
            sync(base / name)
    sync(folder)


def sync(path: Path) -> None:
    """fsync one file or folder; a file system that can't sync folders is left to its own ways."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(file)


def commit(staging: Path, out: Path) -> None:
    """Give the finished staging folder its final name in one step, replacing an old output."""
    if out.is_dir() and any(out.iterdir()):
        old = out.parent / f"{staging.name}-old"
        if _exchange(staging, out):
            staging.rename(old)
        else:
            # Without an atomic exchange there is an instant without output: `_recover` undoes a kill in it.
            out.rename(old)
            try:
                staging.rename(out)
            except OSError:
                old.rename(out)
                raise
        sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(out)
        sync(out.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically (Linux renameat2); False where the kernel or the file system can't."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)
