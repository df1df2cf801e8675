"""Long texts in pieces that have the same tokens: the tokenizers library takes some 110 bytes for each character."""

from __future__ import annotations

import re
from typing import Any

PIECE = 1 << 19
"""Characters of a piece, about."""

_CONTEXT = 2000
_TRIES = 16
_LINE = re.compile(r"\n(?=[A-Za-z\n])")


def pieces(text: str, fast: Any) -> list[str]:
    """`text` in pieces of about `PIECE` characters whose tokens, joined, are those of the whole.

    Cuts lie after a line break, where most tokenizers end a word too, and only where 2 000 characters to both sides
    have the same tokens cut and uncut: after "\\n\\n" for some, between its two for others. A tokenizer that puts
    something before every text, or merges across lines, gets the whole text.

    Args:
        text: of a document.
        fast: a tokenizer of the tokenizers library.
    """
    out = []
    start = 0
    while len(text) - start > 2 * PIECE:
        cut = _cut(text, start + PIECE, fast)
        if cut is None:
            return [text]
        out.append(text[start:cut])
        start = cut
    return [*out, text[start:]]


def _cut(text: str, near: int, fast: Any) -> int | None:
    for tried, match in enumerate(_LINE.finditer(text, near, near + PIECE)):
        if tried == _TRIES:
            break
        cut = match.end()
        left, right = text[cut - _CONTEXT : cut], text[cut : cut + _CONTEXT]
        both, one, other = fast.encode_batch_fast([left + right, left, right], add_special_tokens=False)
        if both.ids == one.ids + other.ids:
            return cut
    return None
