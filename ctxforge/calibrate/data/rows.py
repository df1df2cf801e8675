"""The tokens of a planned row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.cache import TokenCache
from ctxforge.calibrate.data.pools import Piece
from ctxforge.calibrate.data.split import Ranges


@dataclass(frozen=True, eq=False)
class RowTokens:
    """The tokens of one row.

    Attributes:
        ids: prefix and tokens of each piece, int64 [tokens].
        segments: which piece each belongs to, from 0, int64 [tokens]: no token sees another segment's.
        learn: the tokens whose prediction is a loss, bool [tokens]: those of plain text, or of a chat those that the
            assistant wrote; never the prefix, nor a segment's first token, which nothing predicts.
    """

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    learn: NDArray[np.bool_]


def read_row(caches: Sequence[TokenCache], pieces: Sequence[Piece]) -> RowTokens:
    """Copy a row's tokens out of the caches.

    Args:
        caches: the sources', in the order that the pieces count them.
        pieces: of the row.
    """
    ids: list[NDArray[np.int64]] = []
    learn: list[NDArray[np.bool_]] = []
    for piece in pieces:
        cache = caches[piece.source]
        prefix = np.array(cache.header.prefix, np.int64)
        ids.append(np.concatenate([prefix, cache.document(piece.document)[piece.start : piece.stop].astype(np.int64)]))
        learn.append(np.concatenate([np.zeros(len(prefix), bool), _learned(cache, piece)]))
        learn[-1][0] = False
    segments = np.repeat(np.arange(len(pieces)), [len(one) for one in ids])
    return RowTokens(np.concatenate(ids), segments.astype(np.int64), np.concatenate(learn))


def held_out_windows(parts: Sequence[Ranges], length: int, count: int) -> tuple[Piece, ...]:
    """Up to `count` windows of `length` tokens, prefix included, that every evaluation of a run measures on.

    They are taken from the start of the ranges, one of each before a second of any, sources in turn.

    Args:
        parts: such as `Split.held_out`.
        length: tokens with the prefix.
        count: how many at most; fewer where the data has fewer.
    """
    found: list[tuple[int, int, int, Piece]] = []
    for source, part in enumerate(parts):
        size = length - len(part.cache.header.prefix)
        assert size > 0
        for turn, index in enumerate(np.flatnonzero(part.lengths >= size)):
            start, document = int(part.start[index]), int(part.document[index])
            for window in range(min(int(part.lengths[index]) // size, count)):
                at = start + window * size
                found.append((window, turn, source, Piece(source, document, at, at + size)))
    return tuple(piece for *_, piece in sorted(found, key=lambda one: one[:3])[:count])


def _learned(cache: TokenCache, piece: Piece) -> NDArray[np.bool_]:
    spans = cache.assistant_spans(piece.document)
    if spans is None:
        return np.ones(len(piece), bool)
    learn = np.zeros(int(cache.lengths[piece.document]), bool)
    for start, stop in spans:
        learn[start:stop] = True
    return learn[piece.start : piece.stop]
