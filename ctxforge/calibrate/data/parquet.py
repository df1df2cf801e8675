"""Columns of parquet files, through pyarrow (an extra)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ctxforge.calibrate.data.documents import Tally
from ctxforge.calibrate.data.fields import choose_field
from ctxforge.errors import UsageError

_ROWS = 64


def parquet_values(files: list[tuple[str, Path]], column: str | None, tally: Tally) -> Iterator[tuple[str, Any]]:
    """(id, value of the column) of each row. Memory: one column chunk of a row group, as pyarrow decodes it.

    Raises:
        UsageError: pyarrow is not installed, a file is no parquet, or the column isn't there.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise UsageError(
            f"{files[0][1]} needs pyarrow, which is not installed", "pip install 'ctxforge-llm[data]', or give jsonl"
        ) from None
    before = rows = 0
    for name, path in files:
        size = path.stat().st_size
        try:
            file = parquet.ParquetFile(path)
            field = choose_field(file.schema_arrow.names, column, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    tally.bytes_done = before + size * number // file.metadata.num_rows
                    yield f"{name}:{number}", value
        except (arrow.ArrowException, OSError) as error:
            raise UsageError(f"{path} is not a sound parquet file: {error}", "download or write it again") from None
        before += size
        rows += number
    if not rows:
        raise UsageError(f"{files[0][1]} holds no rows", "give more data")
