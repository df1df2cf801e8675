from __future__ import annotations
from typing import Any


def page(rows: list[dict[str, Any]]) -> str:
    return "# Engines\n"
