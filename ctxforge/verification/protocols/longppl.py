"""LongPPL: perplexity over the tokens that need far context (arXiv 2410.23771)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctxforge.verification.perplexity import Losses
from ctxforge.verification.protocols.contexts import full_losses, long_enough, means, short_losses, weighted
from ctxforge.verification.protocols.result import FloatArray, Parameter, demand, exponential, window_passes
from ctxforge.verification.protocols.windows import Source, Tokens, WindowScorer, as_scorer

Keys = npt.NDArray[np.bool_]

TRAPS = (
    "Key tokens are those of one evaluator: numbers with different evaluators or thresholds do not compare.",
    "With the model as its own evaluator, a model that ignores far context has few key tokens or none, and a model "
    "that fails on a token does not count it as key: read the share of key tokens beside it.",
    "The published script puts the evaluator's BOS before the full text and the first short window only; here the "
    "prefix stands before every window.",
)


@dataclass(frozen=True)
class LongPPLSettings:
    """What a key token is (arXiv 2410.23771 and PKU-ML/LongPPL longppl/longppl.py, whose values are the defaults).

    Attributes:
        context: fewest tokens of short context before a scored one.
        refresh: scored tokens that share a short context.
        gain: a key token loses more than this many nats with the short context (the paper's alpha).
        ceiling: and costs less than this many nats with the full one (minus the paper's beta).
    """

    context: int = 4096
    refresh: int = 1024
    gain: float = 2.0
    ceiling: float = 2.0

    @classmethod
    def scaled(cls, trained_length: int) -> LongPPLSettings:
        """The published settings where they fit half the trained length (8192 and up), else in its proportion."""
        context = max(1, min(cls.context, trained_length // 2))
        return cls(context=context, refresh=max(1, context // 4))


@dataclass(frozen=True)
class LongPPL:
    """Perplexity on key tokens.

    Attributes:
        parameters: what the number depends on.
        traps: a sentence each, for the report.
        values: mean loss over the key tokens of every document, [documents]; nan where it has none.
        weights: key tokens of every document: sum(weights * values) / sum(weights) is the logarithm of `longppl`.
        all_values: mean loss over all tokens of every document.
        all_weights: predicted tokens of every document.
        key_tokens: of all documents.
        tokens: predicted tokens of all documents.
        longppl: nan when no document has a key token.
        ppl: of all tokens.
        passes: how forward passes relate to windows.
    """

    parameters: Mapping[str, Parameter]
    traps: tuple[str, ...]
    values: FloatArray
    weights: FloatArray
    all_values: FloatArray
    all_weights: FloatArray
    key_tokens: int
    tokens: int
    longppl: float
    ppl: float
    passes: str


def key_tokens(evaluator: Source, document: Tokens, settings: LongPPLSettings, prefix: Tokens = ()) -> Keys:
    """Which tokens of a document need far context, by an evaluator's losses, bool [len].

    A token is key when its loss with the short context exceeds its loss with the full one by more than
    `settings.gain`, and the latter is below `settings.ceiling`. The first `settings.context` tokens are never key.
    """
    scorer, first = as_scorer(evaluator), settings.context
    found = np.zeros(len(document), dtype=np.bool_)
    if len(document) > first:
        found[first:] = _exceed(scorer, document, full_losses(scorer, document, first, prefix), settings, prefix)
    return found


def _exceed(scorer: WindowScorer, document: Tokens, full: Losses, settings: LongPPLSettings, prefix: Tokens) -> Keys:
    """Key tokens among those after the short context, given their losses `full` with the full one."""
    short = short_losses(scorer, document, settings.context, settings.context, settings.refresh, prefix)
    keys: Keys = (short - full > settings.gain) & (full < settings.ceiling)
    return keys


def transfer_keys(keys: Keys, spans: Sequence[tuple[int, int]], to: Sequence[tuple[int, int]]) -> Keys:
    """Key tokens of one tokenization as key tokens of another, by the characters that they cover.

    Args:
        keys: of the evaluator's tokens, bool [m].
        spans: first and last-plus-one character of the evaluator's tokens, [m].
        to: the same for the model's tokens, [n], ascending.

    Returns:
        bool [n]: tokens that lie wholly within characters covered by adjoining key tokens.
    """
    runs: list[list[int]] = []
    for (start, end), key in zip(spans, keys, strict=True):
        if not key:
            continue
        if runs and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    starts = np.array([run[0] for run in runs], dtype=np.int64)
    at = [int(np.searchsorted(starts, start, side="right")) - 1 for start, _end in to]
    return np.array([i >= 0 and end <= runs[i][1] for i, (_start, end) in zip(at, to, strict=True)], dtype=np.bool_)


def longppl(
    source: Source,
    documents: Sequence[Tokens],
    settings: LongPPLSettings,
    *,
    keys: Sequence[Keys] | None = None,
    evaluator: str = "the model itself",
    prefix: Tokens = (),
) -> LongPPL:
    """LongPPL (arXiv 2410.23771): perplexity over the tokens that need far context.

    Args:
        source: the model to measure.
        documents: token ids without special tokens.
        settings: see `LongPPLSettings`.
        keys: key tokens of every document, [len], by an evaluator (`key_tokens`, and `transfer_keys` for another
            tokenizer); None for the model's own (self-LongPPL).
        evaluator: name of what found the keys.
        prefix: ids put before every window.

    Raises:
        UsageError: no document is longer than the short context, or keys that do not pair with documents.
    """
    long_enough(documents, settings.context)
    scorer = as_scorer(source)
    if keys is not None:
        fits = len(keys) == len(documents) and all(len(k) == len(d) for k, d in zip(keys, documents, strict=True))
        demand(fits, "the key tokens do not pair with the documents.", "Give one mask a document, as long as it is.")
    first = 0 if prefix else 1
    every, key = [], []
    for index, document in enumerate(documents):
        losses = full_losses(scorer, document, first, prefix)
        if keys is not None:
            mask = keys[index][first:]
        else:
            mask = np.zeros(losses.size, dtype=np.bool_)
            far = slice(settings.context - first, None)
            mask[far] = _exceed(scorer, document, losses[far], settings, prefix)
        every.append(losses)
        key.append(losses[mask])
    values, weights = means(key)
    all_values, all_weights = means(every)
    return LongPPL(
        parameters={
            "short_context": settings.context,
            "refresh": settings.refresh,
            "gain": settings.gain,
            "ceiling": settings.ceiling,
            "evaluator": evaluator,
            "prefix_tokens": len(prefix),
        },
        traps=TRAPS,
        values=values,
        weights=weights,
        all_values=all_values,
        all_weights=all_weights,
        key_tokens=int(weights.sum()),
        tokens=int(all_weights.sum()),
        longppl=exponential(weighted(values, weights)),
        ppl=exponential(weighted(all_values, all_weights)),
        passes=window_passes(scorer.prefix_invariant),
    )
