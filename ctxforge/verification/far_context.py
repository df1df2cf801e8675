"""LongPPL and the worth of far context, from losses that the long pass has computed already.

The same numbers as `protocols.longppl` and `long_use.self_long_gain` give, at the price of the short passes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctxforge.verification.perplexity import Losses, perplexity

if TYPE_CHECKING:
    from ctxforge.verification.protocols.longppl import LongPPLSettings


@dataclass(frozen=True)
class FarContext:
    """How much a model makes of what lies further back than a short context.

    Attributes:
        context: fewest tokens of short context before a scored token.
        refresh: scored tokens that share a short context.
        first: number of the first token that `gains` compares.
        key_gain, key_ceiling: a key token loses more than the first with the short context, and costs less than the
            second with the full one, in nats (arXiv 2410.23771).
        gains: loss with the short context minus loss with the full one, mean over the tokens from `first` on, in nats
            a token, window by window.
        gain: their mean; 0 for a model that ignores far context, however good its perplexity.
        key_losses: mean loss over the key tokens of each window; nan where it has none.
        key_counts: key tokens of each window.
        tokens: of all windows that could be key.
        longppl: exp of the mean loss over all key tokens, the model being its own evaluator; nan without any.
    """

    context: int
    refresh: int
    first: int
    key_gain: float
    key_ceiling: float
    gains: tuple[float, ...]
    gain: float
    key_losses: tuple[float, ...]
    key_counts: tuple[int, ...]
    tokens: int
    longppl: float


def far_context(
    full: Sequence[Losses], short: Sequence[Losses], trained_length: int, settings: LongPPLSettings
) -> FarContext:
    """Put the losses of the same tokens side by side.

    Args:
        full: losses of the tokens from number `settings.context` on, with the full context, one array a window.
        short: the same with the short context.
        trained_length: L0: only tokens from this number on count for the gain.
        settings: what the short context was, and what a key token is.
    """
    first = max(trained_length, settings.context)
    skip = first - settings.context
    gains = [_mean(s[skip:]) - _mean(f[skip:]) for f, s in zip(full, short, strict=True)]
    keys = [f[(s - f > settings.gain) & (f < settings.ceiling)] for f, s in zip(full, short, strict=True)]
    key_tokens = sum(part.size for part in keys)
    key_total = sum(float(part.sum(dtype=np.float64)) for part in keys)
    return FarContext(
        context=settings.context,
        refresh=settings.refresh,
        first=first,
        key_gain=settings.gain,
        key_ceiling=settings.ceiling,
        gains=tuple(gains),
        gain=math.fsum(gains) / len(gains) if all(map(math.isfinite, gains)) else math.nan,
        key_losses=tuple(_mean(part) for part in keys),
        key_counts=tuple(part.size for part in keys),
        tokens=sum(part.size for part in full),
        longppl=perplexity(key_total / key_tokens) if key_tokens else math.nan,
    )


def _mean(part: Losses) -> float:
    return float(part.mean(dtype=np.float64)) if part.size else math.nan
