"""The files of a local source, and their bytes as text."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ctxforge.calibrate.data.documents import Tally
from ctxforge.calibrate.data.spec import DataSource, hidden
from ctxforge.calibrate.data.zstd import open_zstd
from ctxforge.errors import CtxforgeError, ResourceError, UsageError

_PROBE = 8192


def files_of(source: DataSource) -> list[tuple[str, Path]]:
    """The files of a local source as (name below the source, path), sorted by name; hidden ones are left out.

    Symbolic links to files are followed, those to folders are not.

    Raises:
        UsageError: a folder without files.
        ResourceError: a folder that can't be read.
    """
    root = source.path
    if not root.is_dir():
        return [(root.name, root)]
    with reading(root):
        found = [Path(folder) / name for folder, _, names in os.walk(root, onerror=_raise) for name in names]
        kept = [path for path in found if not hidden(path, root) and path.is_file()]
    listed = sorted((path.relative_to(root).as_posix(), path) for path in kept)
    if not listed:
        raise UsageError(f"{root} holds no files", "give a folder of text files, *.jsonl or *.parquet")
    return listed


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system or a decompressor says about `path` into an error for the user."""
    try:
        yield
    except CtxforgeError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is not a whole compressed file: {error}", "download or compress it again") from error
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be read: {error.strerror or error}", "check the path, its permissions and the disk"
        ) from error


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file's bytes, decompressed by its suffix, and the raw file, whose position says how far reading is.

    Raises:
        UsageError: a `.zst` file without anything that reads it, or a damaged compressed file.
        ResourceError: not readable.
    """
    with reading(path), path.open("rb") as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as file:
                yield file, raw  # type: ignore[misc]
        elif path.name.lower().endswith(".zst"):
            with open_zstd(raw, path) as file:
                yield file, raw
        else:
            yield raw, raw


def is_binary(head: bytes) -> bool:
    """Whether a file that begins with `head` is no text: it holds a zero byte, as git decides it."""
    return b"\0" in head[:_PROBE]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        UsageError: binary, not UTF-8 (the message has the position), or empty.
        ResourceError: not readable.
    """
    with reading(path):
        data = path.read_bytes()
    if not data.strip():
        raise UsageError(f"{path} is empty", "give a file with text in it")
    if is_binary(data):
        raise UsageError(f"{path} is a binary file", "give plain text in UTF-8")
    return decode(data, str(path))


def decode(data: bytes, where: str) -> str:
    """`data` as UTF-8 text, without a byte-order mark.

    Raises:
        UsageError: not UTF-8; `where` and the position are in the message.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}",
            "convert it, for instance with iconv -f LATIN1 -t UTF-8",
        ) from None


def count_bytes(files: list[tuple[str, Path]], tally: Tally) -> None:
    """Put the size of `files` into the tally."""
    for _name, path in files:
        with reading(path):
            tally.bytes_total += path.stat().st_size
