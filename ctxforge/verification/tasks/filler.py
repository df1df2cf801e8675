"""Filler of exactly so many tokens, in whole sentences.

Sentences are tokenised once for a tokenizer. A text walks through them in an order of its own; its last few are chosen
by their lengths so that the total is exact, a coin problem solved once. So no sentence is ever cut and nothing is
tokenised twice, whatever the length asked for.
"""

from __future__ import annotations

import random
from itertools import islice

from ctxforge.errors import UnsupportedError
from ctxforge.verification.tasks.encode import Encoder
from ctxforge.verification.tasks.grammar import sentences

_FITTING = 1024
# A length counts for the exact end only if so many sentences have it: else the same one would come back too often.
_ENOUGH = 6
_FIRST_POOL = 1024


class Filler:
    """Sentences of one tokenizer.

    Args:
        encode: tokenises pieces.

    Attributes:
        solid: from this many tokens on, every length can be met.
    """

    def __init__(self, encode: Encoder) -> None:
        self.encode = encode
        self.source = sentences()
        fitting = self._next(_FITTING)
        self.by_length: dict[int, list[tuple[int, ...]]] = {}
        for sentence in fitting:
            self.by_length.setdefault(len(sentence), []).append(sentence)
        self.by_length = {n: found for n, found in sorted(self.by_length.items()) if len(found) >= _ENOUGH}
        self.pool: list[tuple[int, ...]] = []
        self.longest = max(map(len, fitting))
        self.mean = sum(map(len, fitting)) / len(fitting)
        self.last = self._coins(6 * self.longest)
        self.solid = max((n + 1 for n, coin in enumerate(self.last) if coin is None), default=0)
        if self.solid > 5 * self.longest:
            raise UnsupportedError(
                "this tokenizer gives all sentences nearly the same number of tokens, so exact lengths cannot be met.",
                "Verify without tasks.",
            )

    def fits(self, tokens: int) -> bool:
        """Whether whole sentences can have exactly so many tokens; 0 is no sentence."""
        return tokens >= self.solid or (tokens >= 0 and self.last[tokens] is not None)

    def text(self, rng: random.Random, tokens: int) -> FillerText:
        """A text from which parts with at most `tokens` tokens in sum are taken."""
        # Nothing here may depend on how far the pool has grown already: the same request gives the same text.
        size = _FIRST_POOL
        while size < 1.5 * tokens / self.mean:
            size *= 2
        while len(self.pool) < size:
            found = self._next(size - len(self.pool))
            self.pool += [sentence for sentence in found if len(sentence) <= self.longest]
        return FillerText(self, rng, size)

    def _next(self, count: int) -> list[tuple[int, ...]]:
        return self.encode.once(list(islice(self.source, count)))

    def _coins(self, limit: int) -> list[int | None]:
        """For every sum of sentence lengths up to `limit`, the last length of the shortest way to it."""
        count: list[int] = [0] + [limit + 1] * limit
        last: list[int | None] = [0] + [None] * limit
        for total in range(1, limit + 1):
            for coin in self.by_length:
                if coin > total:
                    break
                if count[total - coin] + 1 < count[total]:
                    count[total], last[total] = count[total - coin] + 1, coin
        return last


class FillerText:
    """One text, taken part by part; no sentence comes twice while the parts are fewer than a few hundred.

    The walk is `start + step * n` modulo a power of two with an odd step, which meets every sentence once.
    """

    def __init__(self, filler: Filler, rng: random.Random, size: int) -> None:
        self.filler = filler
        self.size = size
        self.step = rng.randrange(size) | 1
        self.at = rng.randrange(size)
        self.turn = dict.fromkeys(filler.by_length, rng.randrange(_FITTING))

    def sentence(self) -> tuple[int, ...]:
        """The next sentence, however long it is."""
        found = self.filler.pool[self.at]
        self.at = (self.at + self.step) % self.size
        return found

    def take(self, tokens: int) -> list[int]:
        """The next whole sentences with exactly `tokens` tokens, which must fit."""
        filler, ids = self.filler, list[int]()
        pool, size, step = filler.pool, self.size, self.step
        # The end is left to the coins, which begin where everything can be met.
        while count := (tokens - filler.solid - len(ids)) // filler.longest:
            if count < 0:
                break
            # However long they are, so many sentences have room.
            for at in range(self.at, self.at + step * count, step):
                ids += pool[at % size]
            self.at = (self.at + step * count) % size
        left = tokens - len(ids)
        while left:
            length = filler.last[left]
            assert length, "a part of the filler that does not fit was asked for"
            choices = filler.by_length[length]
            self.turn[length] += 1
            ids += choices[self.turn[length] % len(choices)]
            left -= length
        return ids
