"""Two protocols on windows that slide over a document: YaRN's, and Position Interpolation's.

They slide alike: windows begin every `stride` tokens, the last ends with the document, and of each only the tokens
that no earlier window reached are scored. They differ in the mean. YaRN's script averages window means, so that its
first window with 32 767 scored tokens weighs as much as each later one with 256; PI weighs by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ctxforge.verification.perplexity import Losses
from ctxforge.verification.protocols.reference import check, ladder_passes
from ctxforge.verification.protocols.result import (
    DocumentScore,
    Parameter,
    ProtocolResult,
    by_token,
    by_window,
    demand,
    exponential,
    overall,
    shorter,
    totals,
    window_passes,
)
from ctxforge.verification.protocols.windows import Source, Tokens, Window, WindowScorer, as_scorer, ladder

STRIDE = 256

_YARN_BOTH = (
    "The mean is over windows and not over tokens, so a window that scores few tokens weighs as much as a full one.",
    "A BOS token stands before every window, even in the middle of a document, and the text is one token shorter "
    "for it; a tokenizer without BOS makes the first token of the first window unscored instead.",
)
_YARN_TRUNCATED = (
    "Truncation makes the stride as long as the window: each document is one window, although the paper's captions "
    "speak of a sliding window with S = 256. Not comparable with PI's tables.",
    "Only the first tokens of a document are read, at every length the same ones and more; the cold start of the "
    "window is in the mean.",
)
_YARN_SLIDING = (
    "The first window of a document scores all of its tokens, each later one only the stride: with window means "
    "the cold start counts as one window among many, and its weight depends on the length of the document.",
    "Documents with many windows weigh more than short ones.",
)
_PI = (
    "No script was published. Read from arXiv 2306.15595 section 3.2 and the sliding evaluation it cites (Press et "
    "al.): the first window scores all of its tokens, each later one its last S, and the mean is over tokens.",
    "The paper does not say whether a BOS token stands before every window; here the prefix given does.",
    "All but the first window's tokens have nearly a full window of context, so this is lower than a protocol with "
    "disjoint or whole windows on the same text, most of all at short windows.",
    "Every window is computed anew: a document of D tokens costs D / S passes over a whole window.",
)


def sliding_windows(document: Tokens, size: int, stride: int, prefix: Tokens = ()) -> Iterator[Window]:
    """Windows of `size` tokens, prefix included, every `stride` tokens, scoring what no earlier window did.

    The last window ends with the document. A window left with nothing to score (a single token without a prefix) is
    left out; the published script would take the mean of nothing there.
    """
    room, reached = size - len(prefix), 0
    for begin in range(0, len(document), stride):
        end = min(begin + room, len(document))
        ids = [*prefix, *document[begin:end]]
        scored = min(end - reached, len(ids) - 1)
        if scored > 0:
            yield Window(ids, scored)
        reached = end
        if end == len(document):
            return


def yarn(
    source: Source, documents: Sequence[Tokens], length: int, *, bos: int | None, stride: int = STRIDE
) -> ProtocolResult:
    """YaRN's protocol without --truncate (jquesnelle/yarn eval/perplexity.py): exp of the mean of window means.

    Args:
        source: computes losses.
        documents: token ids without special tokens.
        length: window length in tokens, BOS included.
        bos: id put before every window; None for a tokenizer that has none.
        stride: tokens between the starts of two windows (`--sliding-window`).

    Raises:
        UsageError: no document, or a window without a prediction.
    """
    prefix = () if bos is None else (bos,)
    scorer, parts = _slide(source, documents, length, stride, prefix)
    scores = [by_window(windows) for windows in parts]
    parameters = _parameters(documents, length, prefix, stride, "over windows", truncate=False)
    traps = (*_YARN_BOTH, *_YARN_SLIDING)
    return _result("yarn-sliding", length, parameters, traps, scores, window_passes(scorer.prefix_invariant))


def yarn_truncated(
    source: Source, documents: Sequence[Tokens], lengths: Sequence[int], *, bos: int | None
) -> list[ProtocolResult]:
    """YaRN's protocol with --truncate, at every length, read off one pass a document where that is exact.

    The script makes one forward a document and length. The window of a length is the beginning of the window of every
    longer one, so a causal model with a fixed rotation has all of them in the longest.

    Args:
        source: computes losses.
        documents: token ids without special tokens.
        lengths: window lengths in tokens, BOS included.
        bos: id put before every window; None for a tokenizer that has none.

    Raises:
        UsageError: no document, or a window without a prediction.
    """
    prefix = () if bos is None else (bos,)
    check(documents, lengths, prefix)
    scorer = as_scorer(source)
    losses = ladder(scorer, documents, lengths, prefix)
    passes = ladder_passes(scorer.prefix_invariant, lengths)
    traps = (*_YARN_BOTH, *_YARN_TRUNCATED)
    results = []
    for length in lengths:
        scores = [by_window([part] if part.size else []) for part in losses[length]]
        parameters = _parameters(documents, length, prefix, length - len(prefix), "over windows", truncate=True)
        results.append(_result("yarn", length, parameters, traps, scores, passes))
    return results


def pi(
    source: Source, documents: Sequence[Tokens], length: int, *, stride: int = STRIDE, prefix: Tokens = ()
) -> ProtocolResult:
    """Position Interpolation's protocol (arXiv 2306.15595 section 3.2): sliding windows, a mean over tokens.

    Args:
        source: computes losses.
        documents: token ids.
        length: window length in tokens, prefix included.
        stride: S, tokens between the starts of two windows.
        prefix: ids put before every window, such as a BOS token.

    Raises:
        UsageError: no document, or a window without a prediction.
    """
    scorer, parts = _slide(source, documents, length, stride, prefix)
    scores = [by_token(windows) for windows in parts]
    parameters = _parameters(documents, length, prefix, stride, "over tokens", truncate=False)
    return _result("pi", length, parameters, _PI, scores, window_passes(scorer.prefix_invariant))


def _slide(
    source: Source, documents: Sequence[Tokens], length: int, stride: int, prefix: Tokens
) -> tuple[WindowScorer, list[list[Losses]]]:
    check(documents, [length], prefix)
    demand(stride >= 1, f"the stride is {stride} tokens.", "Give a stride of 1 token or more.")
    scorer = as_scorer(source)
    return scorer, [list(scorer.score(sliding_windows(document, length, stride, prefix))) for document in documents]


def _parameters(
    documents: Sequence[Tokens], length: int, prefix: Tokens, stride: int, mean: str, *, truncate: bool
) -> dict[str, Parameter]:
    return {
        "stride": stride,
        "truncate": truncate,
        "prefix_tokens": len(prefix),
        "mean": mean,
        "shorter_documents": shorter(documents, length - len(prefix)),
    }


def _result(
    name: str,
    length: int,
    parameters: dict[str, Parameter],
    traps: tuple[str, ...],
    scores: Sequence[DocumentScore],
    passes: str,
) -> ProtocolResult:
    nll = overall(scores)
    tokens, windows = totals(scores)
    return ProtocolResult(
        protocol=name,
        length=length,
        parameters=parameters,
        traps=traps,
        documents=tuple(scores),
        nll=nll,
        ppl=exponential(nll),
        tokens=tokens,
        windows=windows,
        passes=passes,
    )
