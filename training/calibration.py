"""Write the calibration data that ships with the bundled model: prose longer than its window, with things to look up.

The books and the wording are those the model was trained on (`training/books.py`, `training/synthetic.py`), the
lengths are not: a long document holds 8 times the trained window, and what is asked for stands anywhere before.
Nothing is taken from the held-out book, and no key is a word that verification asks with.

    needles   " The number of {word} is {digits}."   and later the same again
    lines     "{key}: {value}\\n"                      and later the same again
    strings   " {random letters}"                     and later the same again

In prose these are a few bytes in a hundred. An interpolated model has lost the bare skill of looking back, and that
comes back by practice: so some documents, short and long, are nothing but facts and questions, or strings that keep
coming.

Usage: python -m training.calibration [--cache training/runs/books] [--check]
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import random
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from ctxforge.sources import bundled_calibration_data
from ctxforge.verification.needles import bundled_words
from ctxforge.verification.tasks.grammar import templates, vocabulary
from training import books
from training.synthetic import digits

DOCUMENTS, SEED = 500, 0

SHARES = {
    "emma": 1.3, "mansfieldpark": 1.3, "prideprejudice": 1.0, "sensesensibility": 1.0, "northangerabbey": 0.7,
    "moby-dick": 0.8, "sotu": 1.2,
}  # fmt: skip
"""Of the documents, by book: as in training (`training.train.SHARES`), so that only the lengths are new."""

KINDS = {
    "short": 0.15, "short-dense": 0.07, "short-copies": 0.13, "plain": 0.12, "needles": 0.25, "lines": 0.05,
    "strings": 0.05, "dense": 0.10, "copies": 0.08,
}  # fmt: skip
"""Of the documents; those not called short are long."""

SHORT, LONG = (620, 1500), (4520, 5800)
"""Bytes of a document, up to a word that is left out; what is planted near the end may lengthen it a little."""

LONGEST = 6000
NEAREST = 32
"""Bytes from a fact to where it is asked for, before both are moved to the ends of sentences and words."""

_TAIL = 120
_BLOCK = 7000


@dataclass(frozen=True)
class Fact:
    """Something that is said and later asked for in the same words.

    Attributes:
        lead: the question.
        value: the answer.
        tail: what ends it.
        own_line: whether it begins a line.
    """

    lead: str
    value: str
    tail: str = ""
    own_line: bool = False

    def after(self, text: str) -> str:
        """The fact as it is written behind `text`."""
        opening = "\n" if self.own_line and not text.endswith("\n") else ""
        return opening + self.lead + self.value + self.tail


class Passages:
    """Stretches of the books, each given out once: a passage that came twice would be known by heart."""

    def __init__(self, texts: Mapping[str, str], shares: Mapping[str, float], rng: random.Random) -> None:
        self.rng = rng
        self.names, self.shares = list(shares), list(shares.values())
        self.blocks = {name: _blocks(texts[name]) for name in self.names}
        for blocks in self.blocks.values():
            rng.shuffle(blocks)

    def take(self) -> str:
        """At least `_BLOCK` bytes that begin with a paragraph."""
        (name,) = self.rng.choices(self.names, self.shares)
        if not self.blocks[name]:
            raise ValueError(f"{name} is used up: ask for fewer documents")
        return self.blocks[name].pop()


class Writer:
    """Draws documents of each kind."""

    def __init__(self, texts: Mapping[str, str], shares: Mapping[str, float], seed: int) -> None:
        self.rng = random.Random(seed)
        self.passages = Passages(texts, shares, self.rng)
        self.banned = banned_words()
        found = set(re.findall(r"\b[a-z]{4,8}\b", " ".join(texts[name] for name in shares)))
        self.book_words = sorted(found - self.banned)
        self.kinds: dict[str, Callable[[], str]] = {
            "short": self.short, "plain": self.plain, "needles": self.needles, "lines": self.lines,
            "strings": self.strings, "dense": lambda: self.dense(LONG), "copies": lambda: self.copies(LONG),
            "short-dense": lambda: self.dense(SHORT), "short-copies": lambda: self.copies(SHORT),
        }  # fmt: skip

    def documents(self, count: int) -> list[str]:
        """`count` documents in a random order, of each kind as many as `KINDS` says."""
        order = [_kind((number + 0.5) / count) for number in range(count)]
        self.rng.shuffle(order)
        return [self.kinds[kind]() for kind in order]

    def short(self) -> str:
        """Plain prose of a few paragraphs."""
        return _ended(self.passages.take(), self.rng.randint(*SHORT))

    def plain(self) -> str:
        """Plain prose of full length."""
        return _ended(self.passages.take(), self.rng.randint(*LONG))

    def needles(self) -> str:
        """Prose with numbers of words."""
        keys = self.keys(_log_uniform(self.rng, 3, 10))
        facts = [Fact(f" The number of {key} is", f" {digits(self.rng)}", ".") for key in keys]
        return self.planted(facts, again=0.88)

    def lines(self) -> str:
        """Prose with lines of a key and a value."""
        rng, facts = self.rng, []
        for key in self.keys(_log_uniform(rng, 6, 20)):
            value = digits(rng, rng.randint(3, 6)) if rng.random() < 0.7 else self.key()
            facts.append(Fact(f"{key}: ", value, "\n", own_line=True))
        return self.planted(facts, again=0.88)

    def strings(self) -> str:
        """Prose with random strings that keep coming back."""
        rng = self.rng
        letters = rng.choice([string.ascii_lowercase, string.ascii_letters + string.digits, string.digits])
        drawn = ["".join(rng.choices(letters, k=rng.randint(12, 48))) for _ in range(rng.randint(4, 12))]
        return self.planted([Fact(f" {one[:3]}", one[3:]) for one in drawn], again=0.8)

    def dense(self, sizes: tuple[int, int]) -> str:
        """Nothing but facts and questions, of numbers or of lines: most of the bytes can be known."""
        rng, size, text = self.rng, self.rng.randint(*sizes), ""
        lines = rng.random() < 0.3
        pool = self.keys(_log_uniform(rng, 3, max(4, size // 120)))
        known: list[Fact] = []
        while len(text) < size:
            if len(known) < len(pool) and (not known or rng.random() < 0.4):
                key = pool[len(known)]
                number, value = f" {digits(rng)}", digits(rng, rng.randint(3, 6))
                known.append(Fact(f"{key}: ", value, "\n") if lines else Fact(f" The number of {key} is", number, "."))
                fact = known[-1]
            else:
                fact = rng.choice(known)
            text += fact.after(text)
        return text

    def copies(self, sizes: tuple[int, int]) -> str:
        """A few random strings in any order, over and over."""
        rng, size, text = self.rng, self.rng.randint(*sizes), ""
        letters = rng.choice([string.ascii_lowercase, string.ascii_letters + string.digits, string.digits])
        drawn = ["".join(rng.choices(letters, k=rng.randint(6, 60))) for _ in range(rng.randint(2, 8))]
        while len(text) < size:
            text += rng.choice(drawn) + rng.choice([" ", "\n", ". "])
        return text

    def key(self) -> str:
        """A word of the books or random letters, never one that verification asks with."""
        if self.rng.random() < 0.6:
            return self.rng.choice(self.book_words)
        while (key := "".join(self.rng.choices(string.ascii_lowercase, k=self.rng.randint(4, 8)))) in self.banned:
            pass
        return key

    def keys(self, count: int) -> list[str]:
        """`count` different keys."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.key()] = None
        return list(found)

    def planted(self, facts: list[Fact], again: float) -> str:
        """Prose of full length with each fact said and asked for, and with the chance `again` one time more, and so on.

        Many questions of few facts: what is said for the first time, or was said before the window that a row of
        training is, can't be known, and too much of that teaches a model not to look back. The first two mentions
        are as far apart as `distance` says; the others lie behind or before them, where they fit.
        """
        rng, size = self.rng, self.rng.randint(*LONG)
        room = size - _TAIL
        events: list[tuple[int, Fact]] = []
        for fact in facts:
            gap = self.distance(room)
            first = rng.randint(0, room - gap)
            places = [first, first + gap]
            while rng.random() < again:
                gap = self.distance(room)
                if places[-1] + gap <= room:
                    places.append(places[-1] + gap)
                elif places[0] >= gap:
                    places.insert(0, places[0] - gap)
            events += [(place, fact) for place in places]
        return self.laid_out(sorted(events, key=lambda event: event[0]), size)

    def distance(self, room: int) -> int:
        """Bytes from `NEAREST` to `room`, uniform or log-uniform, half and half.

        So each octave has its share, and the far ones are not rare.
        """
        return self.rng.randint(NEAREST, room) if self.rng.random() < 0.5 else _log_uniform(self.rng, NEAREST, room)

    def laid_out(self, events: list[tuple[int, Fact]], size: int) -> str:
        """Prose up to each event's place, moved on to the end of a sentence or word; then prose up to `size`."""
        prose, used, text = self.passages.take(), 0, ""
        for place, fact in events:
            if (gap := place - len(text)) > 8:
                cut = self.cut(prose, used + gap)
                text, used = text + prose[used:cut], cut
            text += fact.after(text)
        return text + _ended(prose[used:], size - len(text))

    def cut(self, prose: str, at: int) -> int:
        """Where to break the prose: mostly behind the sentence or word that `at` lies in, else in the middle of it."""
        draw = self.rng.random()
        if draw < 0.5 and (found := re.compile(r"[.!?]\"?(?=\s)").search(prose, at, at + 120)):
            return found.end()
        return at if draw > 0.9 else max(at, prose.find(" ", at))


def banned_words() -> frozenset[str]:
    """Every word of verification's needles, names and filler."""
    spoken = " ".join([*templates(), *(word for slot in vocabulary().values() for word in slot)])
    return frozenset({*bundled_words(), *re.findall(r"[a-z]+", spoken.lower()), "number", "pass", "key"})


def documents(texts: Mapping[str, str], shares: Mapping[str, float], count: int, seed: int) -> list[str]:
    """`count` documents, decided by the arguments alone.

    Args:
        texts: books by name, as `books.fetch` gives them.
        shares: how often each book is drawn from; others are not.
        count: how many.
        seed: of everything that is drawn.

    Raises:
        ValueError: a book is used up.
    """
    found = Writer(texts, shares, seed).documents(count)
    assert max(len(text.encode()) for text in found) <= LONGEST
    return found


def lines_of(texts: list[str]) -> bytes:
    """JSON lines with one field, `text`."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def packed(data: bytes) -> bytes:
    """`data` under gzip, without a name or a time."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=9, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def _kind(place: float) -> str:
    """The kind whose part of the whole `place`, from 0 to 1, lies in."""
    return next(kind for kind, end in zip(KINDS, accumulate(KINDS.values()), strict=True) if place < end + 1e-9)


def _blocks(text: str) -> list[str]:
    """The text in consecutive blocks of whole paragraphs, each of at least `_BLOCK` bytes; the rest is left out."""
    found: list[str] = []
    block = ""
    for paragraph in text.split("\n\n"):
        block += ("\n\n" if block else "") + paragraph
        if len(block) >= _BLOCK:
            found.append(block)
            block = ""
    return found


def _ended(prose: str, size: int) -> str:
    """At most `size` bytes of the prose, to the end of a word."""
    return prose[: max(prose.rfind(" ", 0, max(size, 0)), 0)] if size < len(prose) else prose


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def main() -> None:
    """Write the file; with `--check`, compare what it holds and write nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=Path("training/runs/books"))
    parser.add_argument("--out", type=Path, default=bundled_calibration_data())
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    data = lines_of(documents(books.training_books(args.cache), SHARES, args.documents, args.seed))
    if args.check:
        if gzip.decompress(args.out.read_bytes()) != data:
            raise SystemExit(f"{args.out} holds something else")
    else:
        args.out.write_bytes(packed(data))
    print(f"{args.documents} documents, {len(data):,} bytes, {args.out.stat().st_size:,} packed: {args.out}")


if __name__ == "__main__":
    main()
