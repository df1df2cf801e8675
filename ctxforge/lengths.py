"""Lengths as people write them: `64k`, `1M`, `65536`, `8x`."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from ctxforge.errors import UsageError

_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_PATTERN = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([kmx]?)", re.IGNORECASE)
_EXAMPLES = "write a length as 64k (65 536), 1M, 65536, or 8x the trained length"


def parse_length(text: str | int, *, relative_to: int | None = None) -> int:
    """Tokens. `k` is 1024, `M` is 1024 * 1024, `x` multiplies `relative_to`.

    Args:
        text: what the user wrote.
        relative_to: the length that `8x` refers to; None refuses that form.

    Raises:
        UsageError: not a length, not positive, or not a whole number of tokens.
    """
    written = str(text).strip()
    match = _PATTERN.fullmatch(written)
    if match is None:
        raise UsageError(f"{written[:40]!r} is not a length", _EXAMPLES)
    number, unit = Fraction(Decimal(match[1])), match[2].lower()
    if unit == "x":
        if relative_to is None:
            raise UsageError(f"{written!r} is relative, and there is nothing here to multiply", _EXAMPLES)
        tokens = number * relative_to
    else:
        tokens = number * _UNITS[unit]
    if tokens <= 0:
        raise UsageError(f"a length of {written} is not positive", _EXAMPLES)
    if tokens.denominator != 1:
        raise UsageError(f"{written!r} is {float(tokens):g} tokens, not a whole number", _EXAMPLES)
    return int(tokens)


def format_length(tokens: int) -> str:
    """`65536` as `64k` where that is exact, else the plain number."""
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)
