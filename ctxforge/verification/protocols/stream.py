"""LongLoRA's protocol: overlapping windows over a flat stream of tokens, each scored over all of its positions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ctxforge.verification.perplexity import Losses
from ctxforge.verification.protocols.result import (
    DocumentScore,
    ProtocolResult,
    by_window,
    demand,
    overall,
    totals,
    window_passes,
)
from ctxforge.verification.protocols.sliding import STRIDE
from ctxforge.verification.protocols.windows import Source, Tokens, Window, WindowScorer, as_scorer

# The script writes the base of the exponential out to five decimals.
EULER = 2.71828

TRAPS = (
    "Windows begin every S tokens and every position of each is scored, the cold start included: not PI's sliding "
    "window although it is described alike, and higher than it.",
    "A token in the middle of the text is scored length / S times, tokens near both ends fewer times.",
    "The last start is dropped, and with it the end of the text.",
    "Perplexity is 2.71828 ** loss.",
    "The script sets the interpolation factor to ceil(context / trained length) from --context_size or --seq_len, so "
    "without --context_size a shorter --seq_len evaluates another model. Here the checkpoint is taken as it is.",
    "Peers' numbers were taken in fp16.",
)
_FLAT = (
    "Documents are concatenated without a boundary: windows reach across them, and what precedes a document's start "
    "is another text.",
)
_BATCHES = "Windows are averaged by batch, and batches equally: a short last batch weighs its windows more."


def longlora(
    source: Source,
    documents: Sequence[Tokens],
    length: int,
    *,
    stride: int = STRIDE,
    concatenate: bool = True,
    batch_size: int = 1,
) -> ProtocolResult:
    """LongLoRA's protocol (dvlab-research/LongLoRA eval.py): the mean of whole windows that begin every `stride`.

    Args:
        source: computes losses.
        documents: token ids, with whatever special tokens the stream shall hold.
        length: window length in tokens (`--seq_len`).
        stride: tokens between the starts of two windows.
        concatenate: one stream of all documents, as in the script's `.bin` files; otherwise each document is a stream
            of its own, and one too short for two windows is left out.
        batch_size: windows averaged together before the mean over batches is taken. The script's default is 32, its
            README says 1; with 1 this has no effect.

    Raises:
        UsageError: no stream holds two window starts, of which the last is dropped, or a number is out of range.
    """
    demand(length >= 2, f"a window of {length} token(s) holds no prediction.", "Give a length of at least 2 tokens.")
    demand(stride >= 1 and batch_size >= 1, "a stride or batch size is below 1.", "Give both as 1 or more.")
    streams = [[token for document in documents for token in document]] if concatenate else documents
    starts = [range(0, len(stream) - length, stride)[:-1] for stream in streams]
    longest = max((len(stream) for stream in streams), default=0)
    demand(
        any(len(found) for found in starts),
        f"the text has {longest} tokens, and LongLoRA's protocol at {length} needs {length + stride + 1}.",
        "Give a longer text or a shorter length.",
    )
    scorer = as_scorer(source)
    parts = [_windows(scorer, stream, found, length) for stream, found in zip(streams, starts, strict=True)]
    weights = _weights([len(found) for found in starts], batch_size)
    if concatenate:
        scores = _per_document(documents, starts[0], parts[0], weights[0])
    else:
        scores = [by_window(windows, weight) for windows, weight in zip(parts, weights, strict=True)]
    nll = overall(scores)
    tokens, windows = totals(scores)
    return ProtocolResult(
        protocol="longlora",
        length=length,
        parameters={
            "stride": stride,
            "concatenated": concatenate,
            "batch_size": batch_size,
            "mean": "over whole windows" if batch_size == 1 else "over batches of whole windows",
            "base": EULER,
        },
        traps=(*TRAPS, *(_FLAT if concatenate else ()), *(() if batch_size == 1 else (_BATCHES,))),
        documents=tuple(scores),
        nll=nll,
        ppl=EULER**nll if nll < 700 else math.inf if nll == nll else math.nan,
        tokens=tokens,
        windows=windows,
        passes=window_passes(scorer.prefix_invariant),
    )


def _windows(scorer: WindowScorer, stream: Tokens, starts: Sequence[int], length: int) -> list[Losses]:
    return list(scorer.score(Window(stream[start : start + length], length - 1) for start in starts))


def _weights(counts: Sequence[int], batch_size: int) -> list[list[float]]:
    """Weight of every window of every stream: one over the windows in its batch; batches run on across streams."""
    total = sum(counts)
    flat = [1 / min(batch_size, total - index // batch_size * batch_size) for index in range(total)]
    ends = list(accumulate(counts))
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _per_document(
    documents: Sequence[Tokens], starts: Sequence[int], parts: Sequence[Losses], weights: Sequence[float]
) -> list[DocumentScore]:
    """Windows of a concatenated stream by the document that they begin in."""
    ends = list(accumulate(len(document) for document in documents))
    owners = [bisect_right(ends, start) for start in starts]
    return [
        by_window(
            [part for part, owner in zip(parts, owners, strict=True) if owner == index],
            [weight for weight, owner in zip(weights, owners, strict=True) if owner == index],
        )
        for index in range(len(documents))
    ]
