"""Reading the user's texts and writing reports, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

from ctxforge.errors import ResourceError, UsageError
from ctxforge.origins import made_from_bundled
from ctxforge.sources import BUNDLED, bundled_text


def read_text(path: Path | None, folder: str) -> str:
    """The text at `path`; without one, the bundled text for the bundled model and what was made from it.

    Raises:
        UsageError: no path for another model, or a file that is missing or not UTF-8.
        ResourceError: a file that can't be read.
    """
    if path is None:
        if folder == BUNDLED or made_from_bundled(Path(folder)):
            return bundled_text()
        raise UsageError(
            "no text to measure on", "pass --text FILE, a UTF-8 text at least as long as the target (a book will do)"
        )
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "give --text an existing UTF-8 file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "convert it to UTF-8, or give another file") from None
    except OSError as error:
        raise ResourceError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None


def check_writable(*paths: Path | None) -> None:
    """Make the folders of files that will be written, and try them out, before anything long begins.

    Raises:
        ResourceError: a path is a folder, or can't be written.
    """
    for path in paths:
        if path is None:
            continue
        existed = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            raise ResourceError(f"{path} can't be written: {error.strerror}", "give a path that can be") from None


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path`, making its folder.

    Raises:
        ResourceError: the path can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path} can't be written: {error.strerror}", "give a path that can be") from None
