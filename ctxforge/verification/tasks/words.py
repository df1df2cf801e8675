"""Keys and values of needles: words, digits, UUIDs, names, codes, drawn from seeded random numbers."""

from __future__ import annotations

import math
import random
import string
import uuid
from functools import cache

from ctxforge.verification.needles import DIGITS, bundled_words
from ctxforge.verification.tasks.grammar import vocabulary

_SYLLABLES = tuple(a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or"))


def numbers(rng: random.Random, count: int) -> list[str]:
    """Different numbers of as many digits each, so that none contains another."""
    return [str(n) for n in rng.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)]


def walk(rng: random.Random, size: int, count: int) -> list[int]:
    """`count` different numbers below `size` in a random order; the first ones are the same whatever `count` is.

    A walk modulo `size` with a step that shares no divisor with it: as good as a shuffle for names that are
    unrelated already, and as cheap as the numbers that are taken.
    """
    at = rng.randrange(size)
    step = next(n for n in iter(lambda: rng.randrange(1, size), 0) if math.gcd(n, size) == 1)
    return [(at + step * n) % size for n in range(min(count, size))]


def keys(rng: random.Random, count: int) -> list[str]:
    """Different words of the package's list for keys, which the filler does not use as it uses them here."""
    return rng.sample(bundled_words(), count)


def random_uuid(rng: random.Random) -> str:
    """A UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def names(rng: random.Random, count: int, size: int) -> list[str]:
    """Different names of `size` capital letters."""
    return _distinct(rng, count, size, string.ascii_uppercase)


def codes(rng: random.Random, count: int, size: int) -> list[str]:
    """Different words of `size` random small letters."""
    return _distinct(rng, count, size, string.ascii_lowercase)


def listed(rng: random.Random, count: int) -> list[str]:
    """Different words for a list: those of the package first, in a random order, then made-up ones."""
    found = list(_all_words())
    rng.shuffle(found)
    seen = set(found)
    while len(found) < count:
        word = "".join(rng.choices(_SYLLABLES, k=rng.choice((2, 3))))
        if word not in seen:
            seen.add(word)
            found.append(word)
    return found[:count]


@cache
def pairs() -> tuple[str, ...]:
    """Every `adjective-noun`."""
    words = vocabulary()
    nouns = dict.fromkeys([*words["person"], *words["animal"], *words["thing"], *words["place"], *bundled_words()])
    return tuple(f"{adjective}-{noun}" for adjective in words["adjective"] for noun in nouns)


@cache
def _all_words() -> tuple[str, ...]:
    single = [word for slot in vocabulary().values() for word in slot if " " not in word]
    return tuple(sorted({*single, *bundled_words()}))


def _distinct(rng: random.Random, count: int, size: int, letters: str) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(letters, k=size))] = None
    return list(found)
