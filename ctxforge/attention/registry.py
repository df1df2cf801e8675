"""All attachments by name, and reading what a user wrote about one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ctxforge.attention.types import Attachment, Parameter, Value
from ctxforge.errors import UsageError

# Module of this package, and the attachments in it.
_MODULES = (
    "transformer_xl",
    "blockwise_causal",
    "longnet",
    "lambda_window",
    "infllm",
    "self_extend",
    "rerope",
    "dual_chunk",
    "string_shift",
    "shifted_sparse",
)


def attachments() -> dict[str, Attachment]:
    """Every attachment by name, in the order in which they are listed."""
    found: dict[str, Attachment] = {}
    for name in _MODULES:
        for attachment in import_module(f"ctxforge.attention.{name}").ATTACHMENTS:
            found[attachment.name] = attachment
    return found


def find_attachment(name: str) -> Attachment:
    """The attachment called `name`.

    Raises:
        UsageError: there is none.
    """
    known = attachments()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)} (ctxforge attachments)"
        raise UsageError(f"there is no attachment {name[:60]!r}", hint)
    return known[name]


def read_parameters(attachment: Attachment, given: Mapping[str, Any]) -> dict[str, Value]:
    """The parameters as the user gave them, typed; those with a default where none was given.

    Raises:
        UsageError: an unknown parameter, or a value of the wrong kind.
    """
    known = {parameter.name: parameter for parameter in attachment.parameters}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise UsageError(f"{attachment.name} has no parameter {name[:60]!r}", hint)
    values = {name: parameter.default for name, parameter in known.items() if parameter.default is not None}
    return {**values, **{name: _read(attachment, known[name], value) for name, value in given.items()}}


def _read(attachment: Attachment, parameter: Parameter, given: Any) -> Value:
    text = str(given).strip()
    try:
        if parameter.kind == "int":
            return _whole(text)
        if parameter.kind == "float":
            return float(text)
        if parameter.kind == "ints":
            return [_whole(part) for part in text.strip("[]").replace(",", "/").split("/")]
        if parameter.kind == "bool":
            return {"true": True, "false": False, "yes": True, "no": False}[text.lower()]
        return text
    except (ValueError, KeyError):
        raise UsageError(
            f"{attachment.name}: {parameter.name}={text[:60]} is not {_KINDS[parameter.kind]}", parameter.explanation
        ) from None


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "text": "a text",
    "ints": "a list of whole numbers such as 1024/2048",
}


def _whole(text: str) -> int:
    from ctxforge.lengths import parse_length

    return parse_length(text) if text[-1:].lower() in ("k", "m") else int(text)
