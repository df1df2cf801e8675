"""How much a model makes of far context: LongPPL, the self-LongPPL gain, and delta-use.

All three compare two losses of the same token, one with the full context and one with a short one, and so remove what
plain perplexity is dominated by: tokens that need no far context. The short context is refreshed every few tokens;
its windows begin at position 0, as a short text would.

Every measure gives one value a document, the unit of the paired bootstrap, and weights to go with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ctxforge.verification.protocols.contexts import full_losses, long_enough, means, short_losses, weighted
from ctxforge.verification.protocols.longppl import (
    Keys,
    LongPPL,
    LongPPLSettings,
    key_tokens,
    longppl,
    transfer_keys,
)
from ctxforge.verification.protocols.result import FloatArray, Parameter, demand, window_passes
from ctxforge.verification.protocols.windows import Source, Tokens, as_scorer

__all__ = [
    "Keys",
    "LongPPL",
    "LongPPLSettings",
    "LongUse",
    "delta_use",
    "key_tokens",
    "longppl",
    "self_long_gain",
    "transfer_keys",
]

_GAIN_TRAPS = (
    "Positive only says that far context helps this model, not that it retrieves everything in it.",
    "An extension that also damages short contexts gains more than a good one: the short passes then overstate what "
    "is missing. Read it with the short-context regression, or give the source model for the short passes.",
)
_USE_TRAPS = (
    "The source sees between half and all of its trained length (windows overlap by the refresh), not all of it: "
    "with a larger refresh this flatters the extension by a little.",
    "Positive says that extending beats cutting the text to the trained length, the alternative that a user has.",
)


@dataclass(frozen=True)
class LongUse:
    """Loss with a short context minus loss with the full one, over the same tokens, in nats a token.

    Attributes:
        measure: "self-LongPPL gain" or "delta-use".
        parameters: what the number depends on.
        traps: a sentence each, for the report.
        values: short - full for every document, [documents].
        weights: tokens of every document: sum(weights * values) / sum(weights) is `value`.
        short: mean loss with the short context, [documents].
        full: mean loss with the full context, [documents].
        tokens: compared, of all documents.
        value: positive when the far context helps.
        passes: how forward passes relate to windows.
    """

    measure: str
    parameters: Mapping[str, Parameter]
    traps: tuple[str, ...]
    values: FloatArray
    weights: FloatArray
    short: FloatArray
    full: FloatArray
    tokens: int
    value: float
    passes: str


def self_long_gain(
    source: Source,
    documents: Sequence[Tokens],
    trained_length: int,
    *,
    context: int | None = None,
    refresh: int | None = None,
    first: int | None = None,
    short_source: Source | None = None,
    prefix: Tokens = (),
) -> LongUse:
    """Loss with a short context minus loss with the full one, of one model, over the tokens beyond a position.

    Zero for a model that ignores what is farther than the short context, however good its perplexity.

    Args:
        source: the model to measure.
        documents: token ids without special tokens; those that end before `first` are left out (weight 0).
        trained_length: L0 in tokens.
        context: fewest tokens of short context; None for half of L0.
        refresh: scored tokens that share a short context; None for a quarter of the context.
        first: number of the first token compared; None for L0.
        short_source: a model for the short passes, such as the source of an extension whose weights were not tuned;
            None for the model itself.
        prefix: ids put before every window.

    Raises:
        UsageError: no document is longer than `first`, or numbers that do not fit each other.
    """
    context = max(1, trained_length // 2) if context is None else context
    refresh = max(1, context // 4) if refresh is None else refresh
    first = trained_length if first is None else first
    other = source if short_source is None else short_source
    parameters: dict[str, Parameter] = {"short_passes": "the model itself" if short_source is None else "its source"}
    return _compare(
        "self-LongPPL gain", source, other, documents, (first, context, refresh), prefix, parameters, _GAIN_TRAPS
    )


def delta_use(
    source: Source,
    extended: Source,
    documents: Sequence[Tokens],
    trained_length: int,
    *,
    refresh: int | None = None,
    prefix: Tokens = (),
) -> LongUse:
    """Loss of the source on its last L0 tokens minus loss of the extension on the full context, beyond L0.

    The source's windows are L0 long, prefix included, and overlap: each scores its last `refresh` tokens.

    Args:
        source: the model before the extension.
        extended: the model after it.
        documents: token ids without special tokens; those that end within L0 are left out (weight 0).
        trained_length: L0 in tokens.
        refresh: None for half of L0. A smaller one gives the source more of its context and costs more passes.
        prefix: ids put before every window.

    Raises:
        UsageError: no document is longer than L0, or numbers that do not fit each other.
    """
    refresh = max(1, trained_length // 2) if refresh is None else refresh
    context = trained_length - refresh - len(prefix)
    ranges = (trained_length, context, refresh)
    return _compare("delta-use", extended, source, documents, ranges, prefix, {}, _USE_TRAPS)


def _compare(
    measure: str,
    full_source: Source,
    short_source: Source,
    documents: Sequence[Tokens],
    ranges: tuple[int, int, int],
    prefix: Tokens,
    parameters: dict[str, Parameter],
    traps: tuple[str, ...],
) -> LongUse:
    first, context, refresh = ranges
    demand(
        1 <= context <= first and refresh >= 1,
        f"a short context of {context} tokens refreshed every {refresh} does not fit before token {first}.",
        "Give a context of at least 1 token and at most the first compared position, and a refresh of at least 1.",
    )
    long_enough(documents, first)
    full_scorer, short_scorer = as_scorer(full_source), as_scorer(short_source)
    full = [full_losses(full_scorer, document, first, prefix) for document in documents]
    short = [short_losses(short_scorer, document, first, context, refresh, prefix) for document in documents]
    full_means, weights = means(full)
    short_means, _same = means(short)
    values = short_means - full_means
    return LongUse(
        measure=measure,
        parameters={
            "first_position": first,
            "short_context": context,
            "refresh": refresh,
            "prefix_tokens": len(prefix),
            **parameters,
        },
        traps=traps,
        values=values,
        weights=weights,
        short=short_means,
        full=full_means,
        tokens=int(weights.sum()),
        value=weighted(values, weights),
        passes=window_passes(full_scorer.prefix_invariant and short_scorer.prefix_invariant),
    )
