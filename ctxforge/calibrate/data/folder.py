"""Documents of plain text files: one file, the files of a folder, or the repositories in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ctxforge.calibrate.data.documents import Tally
from ctxforge.calibrate.data.files import is_binary, read_text, reading


def text_value(path: Path, tally: Tally) -> Iterator[tuple[str, str]]:
    """The one document of a text file.

    Raises:
        UsageError: empty, binary, or not UTF-8.
        ResourceError: not readable.
    """
    text = read_text(path)
    tally.bytes_done = tally.bytes_total
    yield path.name, text


def folder_values(
    files: list[tuple[str, Path]], tally: Tally, *, by_repository: bool = False
) -> Iterator[tuple[str, str]]:
    """(id, text) of each file, or of each subfolder with its files joined by a line break, in the order of the paths.

    A folder of code also holds images and archives, so what is binary, empty or not UTF-8 is left out and counted.
    Files directly in the folder are one repository, called `.`.

    Raises:
        ResourceError: a file that can't be read.
    """
    texts = _texts(files, tally)
    if not by_repository:
        yield from texts
        return
    # Sorted by path, a repository's files need not be neighbours: `a-b/x` stands between `a` and `a/y`.
    ordered = sorted(files, key=lambda one: (_repository(one[0]), one[0]))
    for name, group in groupby(_texts(ordered, tally), key=lambda one: _repository(one[0])):
        yield name, "\n".join(text for _, text in group)


def _repository(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else "."


def _texts(files: list[tuple[str, Path]], tally: Tally) -> Iterator[tuple[str, str]]:
    for name, path in files:
        with reading(path):
            data = path.read_bytes()
        tally.bytes_done += len(data)
        if not data.strip():
            tally.drop("empty", name)
        elif is_binary(data):
            tally.drop("binary", name)
        else:
            try:
                yield name, data.decode("utf-8").removeprefix("\ufeff")
            except UnicodeDecodeError:
                tally.drop("not UTF-8", name)
