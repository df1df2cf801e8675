"""The reference: the first tokens of every document in one window, every prediction weighed the same."""

from __future__ import annotations

from collections.abc import Sequence

from ctxforge.verification.protocols.result import (
    PASS_PER_LENGTH,
    Parameter,
    ProtocolResult,
    by_token,
    demand,
    exponential,
    overall,
    shorter,
    totals,
)
from ctxforge.verification.protocols.windows import Source, Tokens, as_scorer, ladder

TRAPS = (
    "The first tokens of a window have little context and are scored too: a longer window has relatively fewer of "
    "them, so some of the gain with length is that alone. Read the buckets by position.",
    "Mean perplexity hardly notices broken retrieval: it is a necessary gate, not a sufficient one.",
)


def one_pass(
    source: Source, documents: Sequence[Tokens], lengths: Sequence[int], *, prefix: Tokens = ()
) -> list[ProtocolResult]:
    """Token-weighted perplexity of the first `length` tokens of every document, at every length.

    Args:
        source: computes losses.
        documents: token ids, each the beginning of a document; a shorter one is scored as far as it goes.
        lengths: window lengths in tokens, prefix included, at least 2.
        prefix: ids put before every document, such as a BOS token.

    Raises:
        UsageError: no document, or a length that holds no prediction.
    """
    check(documents, lengths, prefix)
    scorer = as_scorer(source)
    losses = ladder(scorer, documents, lengths, prefix)
    results = []
    for length in lengths:
        scores = tuple(by_token([part] if part.size else []) for part in losses[length])
        nll = overall(scores)
        tokens, windows = totals(scores)
        parameters: dict[str, Parameter] = {
            "prefix_tokens": len(prefix),
            "mean": "over tokens",
            "shorter_documents": shorter(documents, length - len(prefix)),
        }
        results.append(
            ProtocolResult(
                protocol="one-pass",
                length=length,
                parameters=parameters,
                traps=TRAPS,
                documents=scores,
                nll=nll,
                ppl=exponential(nll),
                tokens=tokens,
                windows=windows,
                passes=ladder_passes(scorer.prefix_invariant, lengths),
            )
        )
    return results


def ladder_passes(prefix_invariant: bool, lengths: Sequence[int]) -> str:
    """How the passes of a `ladder` are described in a result."""
    return f"every length read off one pass of {max(lengths)} tokens" if prefix_invariant else PASS_PER_LENGTH


def check(documents: Sequence[Tokens], lengths: Sequence[int], prefix: Tokens) -> None:
    """Raise a UsageError when there is no document, or a window of one of the lengths holds no prediction."""
    demand(len(documents) > 0, "there is no document to measure.", "Give at least one text.")
    demand(len(lengths) > 0, "there is no length to measure at.", "Give at least one length.")
    least = max(2, len(prefix) + 1)
    demand(
        min(lengths) >= least,
        f"a window of {min(lengths)} tokens holds no prediction after a prefix of {len(prefix)}.",
        f"Give lengths of at least {least} tokens.",
    )
    demand(
        any(len(document) + len(prefix) >= 2 for document in documents),
        "no document has a token that can be predicted.",
        "Give a longer text.",
    )
