"""Data sets of the Hugging Face Hub, streamed through `datasets` (an extra)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ctxforge.calibrate.data.fields import choose_field
from ctxforge.calibrate.data.spec import DataSource
from ctxforge.checkpoint.hub import hub_errors
from ctxforge.errors import CtxforgeError, UnsupportedError, UsageError

_SHA = re.compile(r"[0-9a-f]{40}")
PARQUET_BRANCH = "refs/convert/parquet"
"""The branch into which the Hub converts data sets."""


def pinned_revision(source: DataSource) -> str:
    """The commit that a source's revision is now; asks the Hub unless a whole commit is given.

    Raises:
        HubError: not found, no access, or no network.
    """
    if source.revision is not None and _SHA.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import HfApi

    with hub_errors(source.location, source.revision):
        found = HfApi(library_name="ctxforge").dataset_info(source.location, revision=source.revision)
        return str(found.sha)


def hub_values(source: DataSource, revision: str | None) -> Iterator[tuple[str, Any]]:
    """(id, value of the column) of each row, as the Hub streams them.

    Args:
        source: which data set.
        revision: the commit to read.

    Raises:
        UsageError: `datasets` is not installed, or there is no such configuration, split or column.
        UnsupportedError: the data set is a script; the message names the branch that has it as parquet.
        HubError: the Hub or the network stood in the way.
    """
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError:
        raise UsageError(
            f"{source.name} needs datasets, which is not installed",
            "pip install 'ctxforge-llm[data]', or download the data and give the files",
        ) from None
    with _said(source):
        rows = datasets.load_dataset(
            source.location, source.config, split=source.split, streaming=True, revision=revision
        )
        field: str | None = None
        for number, row in enumerate(rows, 1):
            field = field or choose_field(row, source.column, source.name)
            yield f"{source.location}:{source.split}:{number}", row.get(field)
        if field is None:
            raise UsageError(f"{source.name} holds no rows in {source.split}", "name another split")


@contextmanager
def _said(source: DataSource) -> Iterator[None]:
    """Turn what `datasets` and the Hub raise into an error for the user."""
    with hub_errors(source.location, source.revision):
        try:
            yield
        except CtxforgeError:
            raise
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            raise UnsupportedError(
                f"{source.name} is a script, which datasets no longer runs",
                f"use its parquet branch if it has one: {_parquet(source)}",
            ) from None
        except (ValueError, FileNotFoundError) as error:
            # huggingface_hub's own errors are some of these too, and `hub_errors` knows them better.
            if type(error).__module__.split(".")[0] not in ("builtins", "datasets"):
                raise
            raise UsageError(
                f"{source.name} cannot be read: {error}", "name the config and the split: hf://NAME:CONFIG:SPLIT"
            ) from error


def _parquet(source: DataSource) -> str:
    parts = [
        source.location,
        *([source.config or "", source.split] if source.config or source.split != "train" else []),
    ]
    return f"hf://{':'.join(parts)}@{PARQUET_BRANCH}"
