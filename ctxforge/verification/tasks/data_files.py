"""The user's copies of data sets: JSON, JSON lines, parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctxforge.errors import ResourceError, UsageError

OPTION = "--task-data"


def read_data(path: Path | None, *, task: str, what: str) -> Any:
    """The content of a data file: what a JSON file holds, or a list of rows.

    Args:
        path: of the file; None when the user gave none.
        task: name of the task, for messages.
        what: the data set and where it comes from, for messages.

    Raises:
        UsageError: no file was given, it is not there, or it is not what its name says.
        ResourceError: it cannot be read, or the package that reads parquet is missing.
    """
    remedy = f"Download {what}, and give the file with {OPTION} {task}=FILE (.json, .jsonl or .parquet)."
    if path is None:
        raise UsageError(f"task {task!r} needs a data set.", remedy)
    if not path.is_file():
        raise UsageError(f"task {task!r} needs a data set, and {path} is not a file.", remedy)
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file.", remedy) from error
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror}.", "Give a file that can be read.") from error
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}", remedy) from error


def wrong_rows(path: Path | None, *, task: str, expected: str) -> UsageError:
    """The error for a file that holds something else."""
    return UsageError(f"{path} does not hold what task {task!r} reads.", f"Each entry must have {expected}.")


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ResourceError(
            f"reading {path.name} needs pyarrow.", "Run `pip install pyarrow`, or give the data set as JSON."
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a parquet file: {error}", "Download it again.") from error
    return rows
