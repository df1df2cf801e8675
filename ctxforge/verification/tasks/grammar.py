"""Sentences from templates and word lists of this package: grammatical, harmless, and never the same twice.

Repeated filler ("The grass is green. The sky is blue.") lets a model find the needle as the only thing that is not a
repetition; here every sentence of a haystack is another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources

_SLOT = re.compile(r"\{(\w+)\}")


@cache
def vocabulary() -> dict[str, tuple[str, ...]]:
    """The words of each slot: `ctxforge/verification/data/vocabulary.txt`."""
    found = {}
    for line in _lines("vocabulary.txt"):
        slot, _, words = line.partition(":")
        found[slot] = tuple(word.strip() for word in words.split(","))
    return found


@cache
def templates() -> tuple[str, ...]:
    """The sentences with slots: `ctxforge/verification/data/templates.txt`."""
    return tuple(_lines("templates.txt"))


def sentences() -> Iterator[str]:
    """Distinct sentences, each with a space in front, always in the same order, without end."""
    rng = random.Random("ctxforge filler sentences")
    seen: set[str] = set()
    parts = [(_SLOT.split(template)) for template in templates()]
    words = vocabulary()
    while True:
        pieces = rng.choice(parts)
        text = "".join(rng.choice(words[piece]) if index % 2 else piece for index, piece in enumerate(pieces))
        if text not in seen:
            seen.add(text)
            yield f" {text[0].upper()}{text[1:]}"


def _lines(name: str) -> list[str]:
    entry = resources.files("ctxforge") / "verification" / "data" / name
    lines = entry.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]
