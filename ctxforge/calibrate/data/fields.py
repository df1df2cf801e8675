"""Which field of a record is the document, and what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ctxforge.errors import UsageError

DEFAULT_FIELDS = ("text", "content", "messages")
"""The fields that are taken where none is named, in this order."""

Messages = list[dict[str, Any]]


def choose_field(names: Iterable[str], wanted: str | None, where: str) -> str:
    """The field to read.

    Raises:
        UsageError: `wanted`, or each of `DEFAULT_FIELDS`, is missing; the message names the ones that are there.
    """
    there = list(names)
    found = next((name for name in ((wanted,) if wanted else DEFAULT_FIELDS) if name in there), None)
    if found is not None:
        return found
    missing = repr(wanted) if wanted else "text, content or messages"
    listed = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    raise UsageError(
        f"{where} has no column {missing}; it has {listed or 'none'}",
        "name the column that holds the text: SPEC#column",
    )


def text_or_messages(value: Any, where: str) -> str | Messages | None:
    """The text or the messages that a field holds; None for null, an empty text or no messages.

    Raises:
        UsageError: it holds something else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and all(isinstance(one, Mapping) and "role" in one for one in value):
        return [dict(one) for one in value] or None
    raise UsageError(
        f"{where} holds {_kind(value)}, neither text nor messages with roles",
        "name the column that holds the text or the chat: SPEC#column",
    )


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
