"""CREAM: three chunks, of which the middle one favours the middle of the target (2406.07138)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ctxforge.calibrate.placement.layout import Chunk, Layout, from_chunks, token_array
from ctxforge.calibrate.placement.pose import Seed
from ctxforge.errors import UsageError


def cream_chunks(window: int, text_length: int, target: int, seed: Seed, *, sigma: float = 3.0) -> tuple[Chunk, ...]:
    """CREAM's head, middle and tail.

    With s = L'/L_c: head and tail have L_c // 3 tokens each (half of the rows: relative positions between the three) or
    4 s each (the other half: continuity of the middle), the middle has the rest. The head stands at 0, the tail ends at
    L' - 1. The middle's last position is uniform between head + (m - 1) a/2 and a/2 L_c - tail - 1, m its length, where
    a = floor(x), x from a Gaussian of mean 1 + s and deviation `sigma` cut off outside [2, 2 s]
    (bigai-nlco/CREAM:src/train.py `CREAM`). Head and tail hold the text's start and end; the middle holds the tokens of
    its own positions, or those before the tail where the text is too short for that.

    It differs from the published code in two ways. That code does not renormalise the cut Gaussian, so that what lies
    outside falls on the two ends; and with a short text its middle has one token more than positions.

    Args:
        window: L_c, tokens trained on; no text may be shorter.
        text_length: tokens of the text.
        target: L', at least the window.
        seed: the same seed gives the same chunks.
        sigma: deviation of the Gaussian, published as 3.

    Raises:
        UsageError: a text shorter than the window, a target shorter than it, or a window that 8 s + 1 tokens don't fit.
    """
    scale = target / window if window > 0 else 0.0
    short = 4 * math.ceil(scale)
    if text_length < window or scale < 1 or window < 2 * short + 1 or sigma <= 0:
        raise UsageError(
            f"CREAM cannot place a window of {window} tokens of {text_length} up to {target} (sigma {sigma:g})",
            "give a text as long as the window, a target at least as long, and a window of more than 8 L'/L_c tokens",
        )
    draw = np.random.default_rng(seed)
    ends = window // 3 if draw.integers(2) == 0 else short
    middle = window - 2 * ends
    half = math.floor(_cut_gaussian(draw.random(), scale, sigma)) / 2
    first = math.ceil(ends + (middle - 1) * half)
    last = min(math.floor(half * window), target) - ends - 1
    end = int(draw.integers(min(first, last), last, endpoint=True))
    start = end - middle + 1
    text_start = start if start + middle <= text_length - ends else text_length - ends - middle
    return (
        Chunk(0, ends, 0),
        Chunk(text_start, middle, start),
        Chunk(text_length - ends, ends, target - ends),
    )


def cream(
    tokens: ArrayLike,
    window: int,
    target: int,
    seed: Seed,
    *,
    sigma: float = 3.0,
    learn: ArrayLike | None = None,
    train_seams: bool = False,
) -> Layout:
    """A CREAM row: `window` tokens of a text at positions up to `target`.

    Args:
        tokens: the text.
        window, target, seed, sigma: see `cream_chunks`.
        learn, train_seams: see `from_chunks`.

    Raises:
        UsageError: see `cream_chunks`, and a text that is no array of ids.
    """
    text = token_array(tokens)
    places = cream_chunks(window, len(text), target, seed, sigma=sigma)
    return from_chunks(text, places, target, learn=learn, train_seams=train_seams)


def _cut_gaussian(quantile: float, scale: float, sigma: float) -> float:
    """The quantile of a Gaussian of mean 1 + s cut off outside [2, 2 s]."""
    from statistics import NormalDist

    if scale <= 1:
        return 2.0
    bell = NormalDist(1 + scale, sigma)
    low, high = bell.cdf(2), bell.cdf(2 * scale)
    share = low + quantile * (high - low)
    if not 0 < share < 1:  # so far out in a tail that its probability is lost in rounding
        return 2.0 if share <= 0 else 2 * scale
    return min(max(bell.inv_cdf(share), 2.0), 2 * scale)
