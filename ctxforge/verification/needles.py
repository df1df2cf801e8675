"""Needles: short facts, `The number of {word} is {digits}.`, planted in a text in token space.

Words come from the package's word list. A haystack holds needles for every cell of the grid (context length × depth
stratum) at once; a needle serves every length whose stratum it lies in, so a grid of K doubling lengths and N strata
needs about N · (K + 1) / 2 needles and not N · K. The other needles are distractors of the same form, which makes
this the multi-key variant of needle-in-a-haystack: harder than the one with a single needle, and more telling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ctxforge.errors import UnsupportedError, UsageError

QUESTION = " The number of {word} is"
ANSWER = " {digits}."
DIGITS = 5


@dataclass(frozen=True)
class Needle:
    """One fact in token ids. The text of the needle in the haystack is `question + answer`."""

    word: str
    digits: str
    question: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """What is planted in the haystack."""
        return self.question + self.answer


@dataclass(frozen=True)
class Cell:
    """A needle asked for at the end of the first `length` tokens, where it lies in stratum `stratum` of `strata`."""

    length: int
    stratum: int
    strata: int
    needle: int


@dataclass(frozen=True)
class Haystack:
    """Token ids with needles in them.

    Attributes:
        ids: the context, as long as the longest length of the grid.
        needles: the facts, in order of position.
        starts: index in `ids` of each needle's first token.
        cells: which needle is asked for where.
    """

    ids: tuple[int, ...]
    needles: tuple[Needle, ...]
    starts: tuple[int, ...]
    cells: tuple[Cell, ...]


def bundled_words() -> tuple[str, ...]:
    """The package's word list: `ctxforge/bundled/words.txt`, one a line."""
    entry = resources.files("ctxforge") / "bundled" / "words.txt"
    return tuple(entry.read_text(encoding="utf-8").split())


def make_needle(tokenizer: Any, word: str, digits: str) -> Needle:
    """Tokenise one fact without special tokens.

    The answer's ids are what follows the question's in the tokenised whole; where the tokenizer merges across the
    border, the two are tokenised apart.

    Raises:
        UnsupportedError: the ids do not decode to the text they came from, so a score would mean nothing.
    """
    asked, answered = QUESTION.format(word=word), ANSWER.format(digits=digits)
    question, whole = _encode(tokenizer, asked), _encode(tokenizer, asked + answered)
    if whole[: len(question)] == question and len(whole) > len(question):
        answer = whole[len(question) :]
    else:
        answer = _encode(tokenizer, answered)
    back = tokenizer.decode([*question, *answer], clean_up_tokenization_spaces=False)
    if " ".join(back.split()) != (asked + answered).strip():
        raise UnsupportedError(
            f"this tokenizer turns {asked + answered!r} into {back!r}, so a retrieval score would mean nothing.",
            "Verify without the retrieval grid.",
        )
    return Needle(word, digits, tuple(question), tuple(answer))


def plant(
    tokenizer: Any,
    body: Sequence[int],
    *,
    lengths: Sequence[int],
    strata: int,
    seed: int,
    prefix: Sequence[int] = (),
    words: Sequence[str] | None = None,
) -> Haystack:
    """Build a haystack whose needles cover every (length, depth stratum) cell, deterministically by seed.

    A needle lies wholly inside its stratum and never across one of the lengths. Where a sentence of the text ends
    within reach, the needle starts there.

    Args:
        tokenizer: as in `make_needle`.
        body: text ids; as many as the longest length are enough.
        lengths: context lengths of the grid, in tokens. One that cannot hold a needle with as much text gets no cell.
        strata: depth strata of each length; shorter lengths get fewer, so that needles fill at most half of them.
        seed: of positions, words and values.
        prefix: ids before the text (BOS), kept in front.
        words: distinct words for the needles; None for the package's list.

    Raises:
        UsageError: fewer words than needles, or too little text.
    """
    rng = random.Random(f"ctxforge-needles-{seed}")
    pool = list(bundled_words() if words is None else words)
    # Over all words, so that every seed divides a length into the same strata.
    size = max(len(make_needle(tokenizer, word, "12345").ids) for word in pool)
    rng.shuffle(pool)
    slots, wanted = _reserve(sorted(set(lengths)), strata, size, len(prefix), rng)
    if len(slots) > len(pool):
        raise UsageError(
            f"the retrieval grid needs {len(slots)} words, and there are {len(pool)}.",
            "Ask for fewer needles or fewer lengths.",
        )
    # A needle may come out shorter than the longest one; a longer one is passed over.
    needles: list[Needle] = []
    for word in pool:
        if len(needles) == len(slots):
            break
        needle = make_needle(tokenizer, word, str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS)))
        if len(needle.ids) <= size:
            needles.append(needle)
    if len(needles) < len(slots):
        raise UsageError("too few words of the list are short enough.", "Give more or shorter words.")
    ids, starts = _assemble(tokenizer, list(prefix), body, needles, slots, size, max(lengths))
    cells = tuple(Cell(length, stratum, of, slots.index(slot)) for length, stratum, of, slot in wanted)
    return Haystack(tuple(ids), tuple(needles), tuple(starts), cells)


@dataclass
class _Slot:
    """A reserved range: the needle starts at `at`, or anywhere in low … high where that suits the text better."""

    at: int
    low: int
    high: int


def _reserve(
    lengths: list[int], strata: int, size: int, first: int, rng: random.Random
) -> tuple[list[_Slot], list[tuple[int, int, int, _Slot]]]:
    slots: list[_Slot] = []
    wanted: list[tuple[int, int, int, _Slot]] = []
    for length in lengths:
        count = min(strata, (length - first) // (2 * size))
        for stratum in range(count):
            low = max(first, length * stratum // count)
            high = length * (stratum + 1) // count - size
            inside = [s for s in slots if low <= s.at <= high]
            if inside:
                slot = rng.choice(inside)
                slot.low, slot.high = max(slot.low, low), min(slot.high, high)
            else:
                at = _free_position(low, high, size, lengths, slots, rng)
                if at is None:
                    continue
                slot = _Slot(at, low, high)
                slots.append(slot)
            wanted.append((length, stratum, count, slot))
    for slot in slots:
        before = [cut for cut in lengths if cut <= slot.at]
        after = [cut for cut in lengths if cut >= slot.at + size]
        slot.low, slot.high = max([slot.low, *before]), min(slot.high, min(after) - size)
    slots.sort(key=lambda s: s.at)
    return slots, wanted


def _free_position(
    low: int, high: int, size: int, lengths: list[int], slots: list[_Slot], rng: random.Random
) -> int | None:
    """A random start in low … high that touches no other slot and no length's end (it would see half)."""

    def fits(at: int) -> bool:
        return not any(at < cut < at + size for cut in lengths) and all(abs(at - s.at) >= size for s in slots)

    if high < low:
        return None
    for _ in range(64):
        at = rng.randint(low, high)
        if fits(at):
            return at
    free = [at for at in range(low, high + 1) if fits(at)]
    return rng.choice(free) if free else None


def _assemble(
    tokenizer: Any,
    ids: list[int],
    body: Sequence[int],
    needles: list[Needle],
    slots: list[_Slot],
    size: int,
    length: int,
) -> tuple[list[int], list[int]]:
    """Lay text and needles down from left to right, moving each needle to the sentence end nearest to its slot."""
    ends = _SentenceEnds(tokenizer)
    starts: list[int] = []
    used = 0
    for number, (needle, slot) in enumerate(zip(needles, slots, strict=True)):
        low = max(slot.low, len(ids))
        high = min(slot.high, slots[number + 1].at - size) if number + 1 < len(slots) else slot.high
        choices = [at for at in range(low, high + 1) if ends.after(body, used + at - len(ids))]
        at = min(choices, key=lambda p: abs(p - slot.at)) if choices else slot.at
        take = at - len(ids)
        ids += body[used : used + take]
        used += take
        if len(ids) != at:
            break
        starts.append(at)
        ids += needle.ids
    ids += body[used : used + max(length - len(ids), 0)]
    if len(ids) != length or len(starts) != len(slots):
        raise UsageError(
            f"the text is too short for a haystack of {length} tokens.",
            "Give a longer text or a shorter target length.",
        )
    return ids, starts


class _SentenceEnds:
    """Whether a sentence or line ends before index i of a text, by decoding its token (remembered by id)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, bool] = {}

    def after(self, body: Sequence[int], index: int) -> bool:
        if not 0 < index <= len(body):
            return index == 0
        token = body[index - 1]
        if token not in self.known:
            text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            self.known[token] = text.rstrip(" ").endswith((".", "!", "?", "\n"))
        return self.known[token]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
