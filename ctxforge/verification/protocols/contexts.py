"""Losses of the same tokens with the full context and with a short one that is refreshed every few tokens.

A short context's window begins at position 0, as a short text would. Its losses have to be computed anew: the hidden
states of a token with a short context are in no long pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ctxforge.verification.perplexity import Losses
from ctxforge.verification.protocols.result import FloatArray, demand
from ctxforge.verification.protocols.windows import Tokens, Window, WindowScorer


def full_losses(scorer: WindowScorer, document: Tokens, first: int, prefix: Tokens = ()) -> Losses:
    """Losses of the tokens of `document` from number `first` on, given everything before them, [len - first]."""
    if len(document) <= first:
        return np.empty(0, dtype=np.float32)
    (found,) = scorer.score([Window([*prefix, *document], len(document) - first)])
    return found


def short_windows(document: Tokens, first: int, context: int, refresh: int, prefix: Tokens = ()) -> Iterator[Window]:
    """Windows that score the tokens from number `first` on, each with `context` to `context + refresh - 1` before it.

    Args:
        document: token ids.
        first: number of the first scored token, at least `context`.
        context: tokens in a window before its first scored one, prefix not counted.
        refresh: tokens scored in a window; the last one scores what is left.
        prefix: ids put before every window.
    """
    for start in range(first, len(document), refresh):
        end = min(start + refresh, len(document))
        yield Window([*prefix, *document[start - context : end]], end - start)


def short_losses(
    scorer: WindowScorer, document: Tokens, first: int, context: int, refresh: int, prefix: Tokens = ()
) -> Losses:
    """Losses of the tokens of `document` from number `first` on with a short context, [len - first]."""
    parts = list(scorer.score(short_windows(document, first, context, refresh, prefix)))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def long_enough(documents: Sequence[Tokens], first: int) -> None:
    """Raise a UsageError unless a document has more than `first` tokens."""
    longest = max((len(document) for document in documents), default=0)
    demand(
        longest > first,
        f"the longest document has {longest} tokens, and only what follows token {first} shows use of far context.",
        "Give longer documents.",
    )


def means(parts: Sequence[npt.NDArray[np.floating]]) -> tuple[FloatArray, FloatArray]:
    """Mean of every part, nan where it is empty, and the sizes, both float64 [parts]."""
    found = [float(part.mean(dtype=np.float64)) if part.size else math.nan for part in parts]
    return np.array(found), np.array([float(part.size) for part in parts])


def weighted(values: FloatArray, weights: FloatArray) -> float:
    """sum(w x) / sum(w) over the entries that have a weight; nan when none has."""
    inside = weights > 0
    return float((values[inside] * weights[inside]).sum() / weights.sum()) if inside.any() else math.nan
