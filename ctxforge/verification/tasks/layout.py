"""Where needles lie among whole sentences: how many filler tokens stand before, between and behind them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Fits = Callable[[int], bool]
_TRIES = 32


def place(
    fits: Fits, room: int, sizes: Sequence[int], asked: int | None, depth: int, strata: int, rng: random.Random
) -> tuple[list[int], list[int]] | None:
    """Divide `room` filler tokens among needles.

    The needle that is asked for begins inside its stratum: with h tokens of haystack (filler and needles) and a needle
    of n tokens, at depth * (h - n) / strata <= p <= (depth + 1) * (h - n) / strata. The others lie anywhere.

    Args:
        fits: whether whole sentences can have so many tokens.
        room: tokens of filler.
        sizes: tokens of each needle.
        asked: number of the needle that has a depth; None for none.
        depth: its stratum.
        strata: number of strata.
        rng: random numbers.

    Returns:
        The order of the needles, and the tokens of filler in front of each and behind the last; None when whole
        sentences cannot do it.
    """
    if not fits(room):
        return None
    others = [n for n in range(len(sizes)) if n != asked]
    rng.shuffle(others)
    if asked is None:
        return _scatter(fits, [room], [], others, rng)
    space = room + sum(sizes) - sizes[asked]
    low, high = -(-depth * space // strata), (depth + 1) * space // strata
    # Without other needles in front the filler in front is the position; else theirs is counted too.
    for _ in range(_TRIES if others else 1):
        before = [n for n in others if rng.random() * strata < depth + 0.5]
        ahead = sum(sizes[n] for n in before)
        front = _draw(lambda n: fits(n) and fits(room - n), low - ahead, min(high - ahead, room), rng)
        if front is None:
            continue
        left = _scatter(fits, [front], [], before, rng)
        right = _scatter(fits, [room - front], [], [n for n in others if n not in before], rng)
        if left and right:
            return [*left[0], asked, *right[0]], left[1] + right[1]
    return None


def in_order(fits: Fits, room: int, count: int, rng: random.Random) -> list[int] | None:
    """Tokens of filler in front of each of `count` needles in their given order, and behind the last."""
    found = _scatter(fits, [room], [], list(range(count)), rng) if fits(room) else None
    return found and found[1]


def _scatter(
    fits: Fits, gaps: list[int], order: list[int], needles: Sequence[int], rng: random.Random
) -> tuple[list[int], list[int]] | None:
    """Put needles one after another at random places between sentences; a place is as likely as it is long."""
    for needle in needles:
        at = rng.choices(range(len(gaps)), [gap + 1 for gap in gaps])[0]
        gap = gaps[at]
        cut = _draw(lambda n, gap=gap: fits(n) and fits(gap - n), 0, gap, rng)  # type: ignore[misc]
        if cut is None:
            return None
        gaps[at : at + 1] = [cut, gap - cut]
        order.insert(at, needle)
    return order, gaps


def _draw(good: Fits, low: int, high: int, rng: random.Random) -> int | None:
    """A random number in low ... high that is good, all of them equally likely; None when there is none."""
    low = max(low, 0)
    if high < low:
        return None
    for _ in range(_TRIES):
        value = rng.randint(low, high)
        if good(value):
            return value
    choices = [value for value in range(low, high + 1) if good(value)]
    return rng.choice(choices) if choices else None
