"""Records of JSON lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctxforge.calibrate.data.documents import Tally
from ctxforge.calibrate.data.fields import choose_field
from ctxforge.calibrate.data.files import decode, is_binary, open_bytes, reading
from ctxforge.errors import UsageError


def jsonl_values(files: list[tuple[str, Path]], column: str | None, tally: Tally) -> Iterator[tuple[str, Any]]:
    """(id, value of the column) of each record; blank lines are passed over.

    Raises:
        UsageError: a line that is no JSON object, is not UTF-8 or lacks the column, with its number; a binary file;
            files without any record.
        ResourceError: not readable.
    """
    records = 0
    before = 0
    for name, path in files:
        with open_bytes(path) as (file, raw), reading(path):
            for number, line in enumerate(file, 1):
                if number == 1:
                    _check_first(line, path)
                if not line.strip():
                    continue
                records += 1
                tally.bytes_done = before + raw.tell()
                where = f"line {number} of {path}"
                record = _record(decode(line, where), where)
                yield f"{name}:{number}", record[choose_field(record, column, where)]
            before += path.stat().st_size
    if not records:
        raise UsageError(f"{files[0][1] if len(files) == 1 else files[0][1].parent} holds no records", "give more data")


def _check_first(line: bytes, path: Path) -> None:
    if is_binary(line):
        raise UsageError(f"{path} is a binary file", "give one JSON object a line")
    if line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        raise UsageError(f"{path} holds a JSON array", "write one JSON object a line, for instance with jq -c '.[]'")


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", "correct or remove the line") from None
    if not isinstance(record, dict):
        raise UsageError(f"{where} is not a JSON object", 'write one object a line, such as {"text": "..."}')
    return record
