"""A server that lies about sizes."""

from __future__ import annotations

from typing import Any

from tests.hub_server.answers import Answer
from tests.hub_server.faults import Fault


def lie(fault: Fault, answer: Answer) -> None:
    """Change the sizes that an answer claims, in place; its real body stays as it is."""
    if answer.status >= 400:
        return
    if fault.about in (None, "tree") and answer.value is not None:
        for entry in _entries(answer.value):
            path = str(entry.get("path", entry.get("rfilename", "")))
            if "size" in entry and fault.concerns(path):
                entry["size"] = fault.claimed(int(entry["size"]))
                if entry.get("lfs"):
                    entry["lfs"]["size"] = entry["size"]
    if answer.path and fault.concerns(answer.path):
        if fault.about in (None, "length"):
            answer.headers["Content-Length"] = str(fault.claimed(answer.stop - answer.start))
        if fault.about in (None, "linked") and "X-Linked-Size" in answer.headers:
            answer.headers["X-Linked-Size"] = str(fault.claimed(int(answer.headers["X-Linked-Size"])))


def _entries(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        value = value.get("siblings", [])
    return [entry for entry in value if isinstance(entry, dict) and entry.get("type", "file") == "file"]
