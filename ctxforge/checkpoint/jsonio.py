"""Strict JSON in, and JSON out in the style of the text it replaces."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ctxforge.errors import CheckpointError, InternalError

MAX_JSON_BYTES = 64 * 1024 * 1024
"""Largest config, tokenizer config or index that is read; real ones stay below 20 MB."""

MAX_INT = 2**63 - 1
"""Largest integer that a config may hold: beyond it, other readers (serde, nlohmann::json) fail or round."""


class DuplicateKeyError(ValueError):
    """A JSON object has a key twice; the text of the error is the key."""


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that raises DuplicateKeyError where json would silently keep the last value."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return value


def parse_json_object(data: bytes, name: str, *, bounded_ints: bool = True) -> tuple[dict[str, Any], str]:
    """Parse a JSON object that came from a checkpoint.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.
        bounded_ints: refuse integers beyond 64 bits. Off for tokenizer_config.json, whose `model_max_length` is 1e30.

    Returns:
        The object with its key order, and the exact text.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, a key twice, NaN or Infinity, or a number out of range.
    """
    remedy = f"Restore {name} from the original model, or correct it by hand."
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{name} has {len(data)} bytes, more than the limit of {MAX_JSON_BYTES}.", remedy)
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique_object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except DuplicateKeyError as error:
        key = ascii_name(str(error))
        raise CheckpointError(
            f"{name} has the key {key} twice, and readers disagree on which one counts.",
            f"Remove one of the two {key} entries from {name}.",
        ) from None
    except UnicodeError:
        raise CheckpointError(f"{name} is not UTF-8 text.", remedy) from None
    except RecursionError:
        raise CheckpointError(f"{name} is nested too deeply.", remedy) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{name} is not valid JSON: {error.msg} at {where}.", remedy) from None
    except ValueError:  # Python refuses to convert integers of more than 4300 digits
        raise CheckpointError(f"{name} holds an integer of thousands of digits.", remedy) from None
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
        raise CheckpointError(f"{name} holds {kind} where a JSON object is expected.", remedy)
    _check_numbers(value, name, bounded_ints)
    return value, text


def _check_numbers(root: dict[str, Any], name: str, bounded_ints: bool) -> None:
    """Refuse numbers that are not finite or that other readers can't hold, naming the key."""
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((f"{path}.{key}" if path else key, item) for key, item in value.items())
        elif isinstance(value, list):
            stack.extend((path, item) for item in value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(
                f"{name} has the value {value} under {ascii_name(path)}, which is not a finite number.",
                f"Put the right number under {ascii_name(path)} in {name}.",
            )
        elif bounded_ints and isinstance(value, int) and not -MAX_INT - 1 <= value <= MAX_INT:
            raise CheckpointError(
                f"{name} has an integer beyond 64 bits under {ascii_name(path)}.",
                f"Put the right number under {ascii_name(path)} in {name}.",
            )


def ascii_name(name: str, limit: int = 120) -> str:
    """`name` quoted for a message: printable ASCII, cut at `limit` characters."""
    return json.dumps(name if len(name) <= limit else name[:limit] + "…")


def dump_json_like(original_text: str, value: Mapping[str, Any]) -> bytes:
    """`value` as JSON text in the style of `original_text`, so that a diff shows only what changed.

    Kept from the original: indentation, separators of a one-line text, line ends, the final line break or its absence,
    and whether non-ASCII characters are escaped. The key order is that of `value`.

    Raises:
        InternalError: `value` holds NaN, Infinity or something that isn't JSON.
    """
    body = original_text.strip()
    tail = original_text[len(original_text.rstrip()) :]
    indented = re.match(r"\{[ \t]*\r?\n([ \t]*)", body)
    indent: int | str | None = None
    if indented:
        width = indented.group(1)
        indent = len(width) if width.count(" ") == len(width) else width
    item = ","
    if not indented and (", " in body or body in ("", "{}") or "," not in body):
        item = ", "
    colon = ":" if re.search(r'":[^\s]', body) and not re.search(r'": ', body) else ": "
    try:
        text = json.dumps(
            value, indent=indent, separators=(item, colon), ensure_ascii=original_text.isascii(), allow_nan=False
        )
        if "\r\n" in body:
            text = text.replace("\n", "\r\n")
        if not body:
            tail = "\n"
        return (text + tail).encode("utf-8")
    except (ValueError, TypeError) as error:
        raise InternalError(
            f"A generated JSON file holds a value that JSON cannot express: {error}.",
            "Please report this with the command that you ran.",
        ) from error
