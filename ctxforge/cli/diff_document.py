"""`ctxforge diff --json`: the comparison as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from ctxforge.checkpoint import TensorInfo
from ctxforge.differences import Differences, JsonChange, TensorDifference


def document(found: Differences) -> dict[str, Any]:
    """Everything that was found, each tensor by itself."""
    return {
        "a": {"source": found.sources[0], "revision": found.revisions[0], "tensors": found.tensor_counts[0]},
        "b": {"source": found.sources[1], "revision": found.revisions[1], "tensors": found.tensor_counts[1]},
        "differ": found.differ,
        "complete": found.complete,
        "json": [{"file": one.file, "changes": _changes(one.changes)} for one in found.json],
        "rotary": [dataclasses.asdict(one) for one in found.rotary],
        "tensors": [_tensor(one) for one in found.tensors],
        "headers": [
            {"file": one.file, "metadata": _changes(one.metadata), "spelling": one.spelling} for one in found.headers
        ],
        "sharding": dataclasses.asdict(found.sharding),
        "files": [dataclasses.asdict(one) for one in found.files],
        "notes": list(found.notes),
        "bytes": {"read": found.bytes_read, "skipped": found.bytes_skipped},
    }


def _changes(changes: Iterable[JsonChange]) -> list[dict[str, Any]]:
    made = []
    for change in changes:
        entry: dict[str, Any] = {"path": list(change.path), "kind": change.kind}
        if change.kind != "added":
            entry["before"] = change.before
        if change.kind != "removed":
            entry["after"] = change.after
        made.append(entry)
    return made


def _tensor(found: TensorDifference) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": found.name, "kind": found.kind}
    entry["before"], entry["after"] = _info(found.before), _info(found.after)
    if found.amounts is not None:
        entry["amounts"] = {**dataclasses.asdict(found.amounts), "share": found.amounts.share}
    return entry


def _info(info: TensorInfo | None) -> dict[str, Any] | None:
    if info is None:
        return None
    return {"dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes, "file": info.file}
