"""Perplexity of token losses: at every context length (cumulative) and by bucket of position. Numbers only, no model.

Perplexity is exp of the mean loss over *tokens*. A mean of per-window means, as several published scripts take it,
gives a short last window the weight of a long one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Losses = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LengthScore:
    """Perplexity of the first `length` tokens of each window, over `tokens` predicted tokens; `nll` in nats a token."""

    length: int
    tokens: int
    nll: float
    ppl: float


@dataclass(frozen=True)
class BucketScore:
    """Perplexity of the predictions made at positions start ≤ p < end, over `tokens` of them; `nll` in nats a token.

    The prediction made at position p is of the token at p + 1, so a window's last position makes none.
    """

    start: int
    end: int
    tokens: int
    nll: float
    ppl: float


def perplexity(nll: float) -> float:
    """exp(nll): infinite where a float cannot hold it, not a number for no number."""
    if math.isnan(nll):
        return nll
    return math.exp(nll) if nll < 700 else math.inf


def by_length(windows: Sequence[Losses], length: int) -> LengthScore:
    """Token-weighted score of the first `length` tokens of every window.

    Args:
        windows: one array of losses a window, entry i belonging to the token at position i + 1 (the token at
            position 0 has no prediction).
        length: context length in tokens, at least 2.
    """
    nll, tokens = _mean([losses[: length - 1] for losses in windows])
    return LengthScore(length, tokens, nll, perplexity(nll))


def by_bucket(windows: Sequence[Losses], length: int, buckets: int) -> list[BucketScore]:
    """Token-weighted score of the predictions made in each of `buckets` equal ranges of position below `length`."""
    edges = [length * i // buckets for i in range(buckets + 1)]
    scores = []
    for start, end in itertools.pairwise(edges):
        nll, tokens = _mean([losses[start:end] for losses in windows])
        if tokens:
            scores.append(BucketScore(start, end, tokens, nll, perplexity(nll)))
    return scores


def _mean(parts: Sequence[Losses]) -> tuple[float, int]:
    # Summed in float64: float32 would lose the fourth decimal over 100 000 tokens.
    tokens = sum(part.size for part in parts)
    total = float(sum(part.sum(dtype=np.float64) for part in parts))
    return (total / tokens if tokens else math.nan), tokens
