"""Seeded training text: prose windows, and prose or bare sequences in which something must be looked up.

Every sample is `length + 1` bytes and one loss weight per byte. Bytes nobody could know (the first sight of a
random number) weigh nothing, bytes that must be copied from earlier text weigh more: retrieval then forms
within the small budget of a CPU run. The sentences are those `ctxforge verify` asks with:

    needle   " The number of {word} is {digits}."        query  " The number of {word} is" -> " {digits}"
    lines    "{key}: {value}\\n"                          query  "{key}: " -> "{value}"
    passkey  " The pass key is {digits}. Remember it."   query  " The pass key is" -> " {digits}"
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from pathlib import Path

HOLD_EVERY = 5
"""Every fifth word of the list is a test key: never a key in training."""


def split_words(path: Path) -> tuple[list[str], list[str]]:
    """(training keys, held-out keys) of the word list."""
    words = path.read_text(encoding="utf-8").split()
    return [w for n, w in enumerate(words) if n % HOLD_EVERY != 4], words[4::HOLD_EVERY]


def digits(rng: random.Random, n: int = 5) -> str:
    """`n` random digits, the first of them not zero."""
    return str(rng.randrange(10 ** (n - 1), 10**n))


class Page:
    """Bytes under construction, with a loss weight for each."""

    def __init__(self, limit: int) -> None:
        self.limit, self.text, self.weights = limit, bytearray(), list[float]()

    def add(self, text: str | bytes, weight: float = 1.0) -> None:
        """Append `text` with one weight for all its bytes."""
        raw = text.encode() if isinstance(text, str) else text
        self.text += raw
        self.weights += [weight] * len(raw)

    def done(self) -> tuple[bytes, list[float]]:
        """The page cut to its limit."""
        return bytes(self.text[: self.limit]), self.weights[: self.limit]


class Mixer:
    """Draws samples of each kind from the books and the word list."""

    def __init__(
        self, books: dict[str, str], shares: dict[str, float], words: list[str], banned: list[str],
        length: int, seed: int, answer_weight: float = 4.0,
    ) -> None:  # fmt: skip
        self.books = {n: t.encode() for n, t in books.items()}
        self.names, self.shares = list(shares), list(shares.values())
        self.limit, self.words, self.rng, self.answer = length + 1, words, random.Random(seed), answer_weight
        self.banned = set(banned)
        self.book_words: list[str] = sorted({*re.findall(r"\b[a-z]{4,8}\b", " ".join(books.values()))} - self.banned)
        self.kinds: dict[str, Callable[[], Page]] = {
            "prose": self.prose, "needles": self.needles, "dense": self.dense, "lines": self.lines,
            "passkey": self.passkey, "repeat": self.repeat, "copy": self.copy,
        }  # fmt: skip

    def sample(self, mix: dict[str, float]) -> tuple[bytes, list[float]]:
        """One sample of a kind drawn by the weights in `mix`."""
        (kind,) = self.rng.choices(list(mix), list(mix.values()))
        return self.kinds[kind]().done()

    def filler(self, n: int) -> bytes:
        """`n` bytes of one book, from anywhere in it."""
        (name,) = self.rng.choices(self.names, self.shares)
        book = self.books[name]
        at = self.rng.randrange(len(book) - n)
        return book[at : at + n]

    def key(self) -> str:
        """A key: from the word list, from the books, or random letters, so that matching must generalise."""
        draw = self.rng.random()
        if draw < 0.3:
            return self.rng.choice(self.words)
        if draw < 0.6:
            return self.rng.choice(self.book_words)
        while (key := "".join(self.rng.choices(string.ascii_lowercase, k=self.rng.randint(4, 8)))) in self.banned:
            pass
        return key

    def keys(self, n: int) -> list[str]:
        """`n` different keys."""
        found: dict[str, None] = {}
        while len(found) < n:
            found[self.key()] = None
        return list(found)

    def prose(self) -> Page:
        """A plain window of a book."""
        page = Page(self.limit)
        page.add(self.filler(self.limit))
        return page

    def _schedule(self, events: list[tuple[float, str, str, str]]) -> Page:
        """Prose with `(offset, lead, value, tail)` events in it; a value seen before is an answer to copy."""
        page, seen = Page(self.limit), set[str]()
        prose, used = self.filler(self.limit + 64), 0
        for offset, lead, value, tail in sorted(events):
            if (gap := int(offset) - len(page.text)) > 8:
                cut = used + gap if self.rng.random() < 0.1 else max(used + gap, prose.find(b" ", used + gap))
                page.add(prose[used:cut])
                used = cut
            page.add(lead, 0.4)
            page.add(value, self.answer if (lead + value) in seen else 0.0)
            page.add(tail, 1.0)
            seen.add(lead + value)
        page.add(prose[used:])
        return page

    def needles(self) -> Page:
        """Prose with needles and queries; the distance of the first pair is uniform over the window."""
        rng, room = self.rng, self.limit - 45
        events: list[tuple[float, str, str, str]] = []
        for n, word in enumerate(self.keys(rng.randint(1, 5))):
            lead, value = f" The number of {word} is", f" {digits(rng)}"
            gap = rng.randint(30, room - 5)
            at = rng.randint(0, room - gap)
            events.append((at, lead, value, "."))
            if n < 2 or rng.random() < 0.6:
                events.append((at + gap, lead, value, "."))
                if rng.random() < 0.5:
                    events.append((rng.uniform(at + gap, room), lead, value, "."))
        return self._schedule(events)

    def passkey(self) -> Page:
        """Prose with one pass key, asked once."""
        rng, room = self.rng, self.limit - 45
        gap = rng.randint(45, room - 5)
        at, value, lead = rng.randint(0, room - gap), f" {digits(rng)}", " The pass key is"
        return self._schedule([(at, lead, value, ". Remember it."), (at + gap, lead, value, ".")])

    def dense(self) -> Page:
        """Nothing but needles and queries: the densest signal."""
        rng, page = self.rng, Page(self.limit)
        page.add(self.filler(rng.randint(0, self.limit // 4)))
        known: dict[str, str] = {}
        pool = self.keys(rng.randint(3, 9))
        while len(page.text) < self.limit:
            new = len(known) < len(pool) and (not known or rng.random() < 0.6)
            word = pool[len(known)] if new else rng.choice(list(known))
            value = known.setdefault(word, f" {digits(rng)}")
            page.add(f" The number of {word} is", 0.4)
            page.add(value, 0.0 if new else self.answer)
            page.add(".")
        return page

    def lines(self) -> Page:
        """`key: value` lines, later lines repeating earlier keys, sometimes with prose between."""
        rng, page = self.rng, Page(self.limit)
        known: dict[str, str] = {}
        pool, gaps = self.keys(rng.randint(4, 14)), rng.random() < 0.4
        while len(page.text) < self.limit:
            new = len(known) < len(pool) and (not known or rng.random() < 0.6)
            key = pool[len(known)] if new else rng.choice(list(known))
            value = known.setdefault(key, digits(rng, rng.randint(3, 6)) if rng.random() < 0.7 else self.key())
            page.add(f"{key}: ", 0.4)
            page.add(value, 0.0 if new else self.answer)
            page.add("\n")
            if gaps and rng.random() < 0.2:
                page.add(self.filler(rng.randint(30, 150)) + b"\n")
        return page

    def copy(self) -> Page:
        """Random strings that keep coming back: the bare skill of copying, practised on most bytes."""
        rng, page = self.rng, Page(self.limit)
        letters = rng.choice([string.ascii_lowercase, string.ascii_letters + string.digits, string.digits])
        longest = max(10, self.limit // 12)
        strings = ["".join(rng.choices(letters, k=rng.randint(6, longest))) for _ in range(rng.randint(1, 4))]
        seen = set[str]()
        while len(page.text) < self.limit:
            text = rng.choice(strings)
            page.add(text[:3], 0.0)
            page.add(text[3:], 2.0 if text in seen else 0.0)
            page.add(rng.choice([" ", "\n", ". "]), 0.2)
            seen.add(text)
        return page

    def repeat(self) -> Page:
        """Prose in which one snippet comes back: what teaches copying on natural text."""
        rng, page = self.rng, Page(self.limit)
        snippet = self.filler(rng.randint(60, 200))
        page.add(self.filler(rng.randint(0, self.limit - 2 * len(snippet) - 24)))
        page.add(snippet)
        page.add(self.filler(rng.randint(0, max(self.limit - len(page.text) - len(snippet) - 24, 0))))
        page.add(snippet[:6])
        page.add(snippet[6:], 1.5)
        page.add(self.filler(max(self.limit - len(page.text), 0)))
        return page
