"""The texts that jobs name."""

from __future__ import annotations

from pathlib import Path

from ctxforge.batch.specs import JobSpec
from ctxforge.errors import ResourceError, UsageError
from ctxforge.origins import made_from_bundled
from ctxforge.sources import BUNDLED, bundled_text


def verify_text(spec: JobSpec) -> str:
    """What a job is measured on; "" where its tier reads none or nothing is measured.

    Raises:
        UsageError: no text for another model than the bundled one, or a file that is missing or not UTF-8.
        ResourceError: a file that can't be read.
    """
    if spec.verify is None or spec.verify.tier == "smoke":
        return ""
    if spec.verify.text_path is not None:
        return read_text(spec.verify.text_path)
    if spec.source == BUNDLED or made_from_bundled(Path(spec.source)):
        return bundled_text()
    raise UsageError("no text to verify on", "write verify.text_path, a UTF-8 text at least as long as the target")


def guard_texts(spec: JobSpec) -> tuple[str, ...]:
    """What a job's calibration must not train on: its guard texts, and the text that it is verified on.

    Raises:
        UsageError: a file that is missing or not UTF-8.
        ResourceError: a file that can't be read.
    """
    if spec.calibrate is None:
        return ()
    verified = verify_text(spec)
    return (*(read_text(path) for path in spec.calibrate.guard_paths), *((verified,) if verified else ()))


def read_text(path: str) -> str:
    """A text file's contents.

    Raises:
        UsageError: missing or not UTF-8.
        ResourceError: it can't be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "give an existing UTF-8 file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "convert it to UTF-8, or give another file") from None
    except OSError as error:
        raise ResourceError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None
