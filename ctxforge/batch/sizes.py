"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from ctxforge.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """Bytes: a number, or text such as 8GB or 512MiB.

    Raises:
        UsageError: not an amount, or not positive.
    """
    match = _PATTERN.fullmatch(str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"{text!r} is no amount of memory", "write 8GB, 512MiB or a number of bytes")
    count = int(float(match[1]) * _UNITS[match[2].lower()])
    if count <= 0:
        raise UsageError(f"{text!r} is no memory at all", "write 8GB, 512MiB or a number of bytes")
    return count
