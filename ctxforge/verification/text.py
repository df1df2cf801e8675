"""A text as token windows, with whatever the tokenizer puts in front of a text put in front of every window."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import UsageError

# A tokenizer rarely spends a token on more characters than this, so a longer text need not be tokenised to its end.
_CHARACTERS_PER_TOKEN = 24


@dataclass(frozen=True)
class TokenText:
    """A tokenised text.

    Attributes:
        prefix: ids that the tokenizer puts before a text (a BOS token, or nothing); appended ids are dropped.
        body: the text's own ids.
        sha256: of the whole text in UTF-8, however much of it was tokenised.
        complete: False when only the beginning of a very long text was tokenised.
    """

    prefix: tuple[int, ...]
    body: tuple[int, ...]
    sha256: str
    complete: bool

    def windows_of(self, length: int) -> int:
        """How many whole windows of `length` ids it holds."""
        return len(self.body) // (length - len(self.prefix))

    def window(self, index: int, length: int) -> list[int]:
        """Window number `index`: `length` ids, prefix included, of consecutive text without overlap."""
        size = length - len(self.prefix)
        return [*self.prefix, *self.body[index * size : (index + 1) * size]]


def tokenize(tokenizer: Any, text: str, *, length: int, windows: int, spare: int = 0) -> TokenText:
    """Tokenise `text` far enough for `windows` windows of `length` ids, and `spare` ids more where it has them.

    Raises:
        UsageError: the text is empty or has too few tokens; the message names both lengths.
    """
    if not text.strip():
        raise UsageError("the text to verify on is empty.", f"Give a text of at least {length * windows} tokens.")
    limit = _CHARACTERS_PER_TOKEN * (length * windows + spare) + 1000
    cut = text[:limit]
    body = _ids(tokenizer, cut, special=False)
    prefix = added_prefix(tokenizer)
    if len(prefix) >= length:
        raise UsageError(
            f"the tokenizer adds {len(prefix)} tokens to a window of {length}.", "Verify at a longer target length."
        )
    found, wanted = len(body) + windows * len(prefix), length * windows
    if found < wanted:
        raise UsageError(
            f"the text has {found} tokens, and {windows} window(s) of {length} tokens need {wanted}.",
            "Give a longer text with --text, fewer documents, or a shorter target length.",
        )
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return TokenText(tuple(prefix), tuple(body), digest, len(cut) == len(text))


def added_prefix(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before a text: what it does is kept, not corrected."""
    sample = "The"
    plain, special = _ids(tokenizer, sample, special=False), _ids(tokenizer, sample, special=True)
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return special[:start]
    return []


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    # verbose=False: a text longer than the tokenizer's maximum is the point here, not a mistake worth a warning.
    return [int(i) for i in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
