"""Which part of the data is trained on, and which is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.cache import TokenCache
from ctxforge.errors import UsageError

By = Literal["documents", "tails"]


@dataclass(frozen=True, eq=False)
class Ranges:
    """Stretches of one cache's documents, in the cache's order.

    Attributes:
        cache: whose documents.
        document: index of each stretch's document, int64 [count], ascending.
        start, stop: its tokens within the document, int64 [count].
    """

    cache: TokenCache
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.document)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each stretch, int64 [count]."""
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.lengths.sum())

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Ranges:
        """Some of the stretches, by mask or index."""
        return Ranges(self.cache, self.document[chosen], self.start[chosen], self.stop[chosen])


@dataclass(frozen=True)
class Split:
    """The two parts of each source, in the order of the sources.

    Attributes:
        train: what is trained on.
        held_out: what is not; disjoint from it.
        by: `documents`: whole documents, chosen by hash. `tails`: the end of each document.
    """

    train: tuple[Ranges, ...]
    held_out: tuple[Ranges, ...]
    by: By


def whole(cache: TokenCache) -> Ranges:
    """All documents of a cache, whole."""
    every = np.arange(len(cache), dtype=np.int64)
    return Ranges(cache, every, np.zeros(len(cache), np.int64), cache.lengths.copy())


def distinct(caches: Sequence[TokenCache]) -> tuple[Ranges, ...]:
    """All documents of several caches without those whose text an earlier one holds."""
    seen = np.empty(0, np.uint64)
    out = []
    for cache in caches:
        new = ~np.isin(cache.hashes, seen)
        out.append(whole(cache).take(new))
        seen = np.union1d(seen, cache.hashes)
    return tuple(out)


def split(parts: Sequence[Ranges], share: float, *, by: By | None = None) -> Split:
    """Hold out a share of the data.

    By documents, whether a document is held out depends on its text and on `share` alone: it stays where it is when
    documents are added or removed, and a larger share holds out those of a smaller one too. Where that leaves one of
    the sides empty, and `by` is None, the end of each document is held out instead: `share` of its tokens.

    Args:
        parts: the documents of each source, as `distinct` or `whole` gives them.
        share: of the documents, or of each document's tokens; 0 holds out nothing.
        by: None chooses.

    Raises:
        UsageError: a share outside [0, 1), or one of the sides is empty.
    """
    if not 0 <= share < 1:
        raise UsageError(f"a held-out share of {share:g} is not usable", "give a share from 0 to below 1")
    if by != "tails":
        found = _by_documents(parts, share)
        if by == "documents" or share == 0 or _both(found):
            return _checked(found, share)
    return _checked(_by_tails(parts, share), share)


def _by_documents(parts: Sequence[Ranges], share: float) -> Split:
    # The top 53 bits, so that a float holds them exactly.
    held = [(part.cache.hashes[part.document] >> np.uint64(11)) < share * (1 << 53) for part in parts]
    train = tuple(part.take(~mask) for part, mask in zip(parts, held, strict=True))
    return Split(train, tuple(part.take(mask) for part, mask in zip(parts, held, strict=True)), "documents")


def _by_tails(parts: Sequence[Ranges], share: float) -> Split:
    train, held = [], []
    for part in parts:
        cut = part.stop - np.floor(part.lengths * share).astype(np.int64)
        train.append(Ranges(part.cache, part.document, part.start, cut).take(cut > part.start))
        held.append(Ranges(part.cache, part.document, cut, part.stop).take(part.stop > cut))
    return Split(tuple(train), tuple(held), "tails")


def _both(found: Split) -> bool:
    return any(map(len, found.train)) and any(map(len, found.held_out))


def _checked(found: Split, share: float) -> Split:
    if any(map(len, found.train)) and (share == 0 or any(map(len, found.held_out))):
        return found
    count = sum(map(len, (*found.train, *found.held_out)))
    side = "held out" if any(map(len, found.train)) else "left to train on"
    raise UsageError(
        f"a held-out share of {share:g} of {count} {found.by} leaves nothing {side}", "give more data or another share"
    )
