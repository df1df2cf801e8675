"""lm-evaluation-harness's rolling log-likelihood: disjoint windows, per word and per byte."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ctxforge.verification.protocols.result import (
    FloatArray,
    ProtocolResult,
    by_token,
    demand,
    exponential,
    overall,
    shorter,
    totals,
    window_passes,
)
from ctxforge.verification.protocols.windows import Source, Tokens, Window, as_scorer

TRAPS = (
    "Windows are disjoint and every one starts cold, with one token of context: another max_length changes how often "
    "that happens as much as how much context there is. Right for short-context regression, wrong for long "
    "perplexity.",
    "Only the last window of a document, where it is not full, reaches back over the previous one to fill up.",
    "Perplexity is per word or byte of the text and depends on the tokenizer only through the model; words are what "
    "lies between white space, empty strings at the ends included. The wikitext task counts both on the text before "
    "its detokenizer.",
    "The first token is conditioned on a prefix token (BOS, or EOS without one), later windows on the token before "
    "them. A tokenizer that adds a BOS itself gives two, unless the text begins with its spelling.",
)


@dataclass(frozen=True)
class TextLength:
    """Length of a document's text in words and in bytes of UTF-8."""

    words: int
    bytes: int


@dataclass(frozen=True)
class RollingResult(ProtocolResult):
    """A text under lm-eval's protocol; `ppl` and `nll` are per token, which lm-eval does not report.

    Attributes:
        lengths: of every document, for intervals per word and per byte.
        word_perplexity: exp of the loss per word.
        byte_perplexity: exp of the loss per byte.
        bits_per_byte: loss per byte in bits.
    """

    lengths: tuple[TextLength, ...]
    word_perplexity: float
    byte_perplexity: float
    bits_per_byte: float

    @property
    def losses(self) -> FloatArray:
        """Summed loss of every document in nats, [documents]: minus lm-eval's log-likelihood."""
        sums: FloatArray = self.values * self.weights
        return sums


def text_length(text: str) -> TextLength:
    """Words and bytes of a text as lm-eval counts them: white space at an end adds an empty word."""
    return TextLength(len(re.split(r"\s+", text)), len(text.encode("utf-8", "surrogatepass")))


def rolling_windows(document: Tokens, length: int, prefix_token: int) -> Iterator[Window]:
    """Windows that predict `length` tokens each, context length 1; the last one reaches back to stay full."""
    for begin in range(0, len(document), length):
        end = min(begin + length, len(document))
        # `length` tokens are fed, and the last predicted one is not among them.
        ids = [prefix_token, *document[:end]] if begin == 0 else document[end - length - 1 : end]
        yield Window(ids, end - begin, feed_last=False)


def lm_eval_rolling(
    source: Source, documents: Sequence[Tokens], lengths: Sequence[TextLength], length: int, *, prefix_token: int
) -> RollingResult:
    """Word and byte perplexity and bits per byte as lm-eval's `loglikelihood_rolling` tasks give them.

    Source: EleutherAI/lm-evaluation-harness lm_eval/utils.py (`get_rolling_token_windows`, `make_disjoint_window`)
    and lm_eval/models/huggingface.py, context length 1.

    Args:
        source: computes losses.
        documents: token ids of every document, whole.
        lengths: of the same documents' texts, see `text_length`.
        length: `max_length`, the tokens fed at most.
        prefix_token: what the first token is conditioned on: BOS, or EOS where there is no BOS.

    Raises:
        UsageError: no document with text, lengths that do not pair with documents, or a length below 1.
    """
    demand(length >= 1, f"max_length is {length}.", "Give a length of at least 1 token.")
    demand(any(len(document) for document in documents), "there is no text to measure.", "Give at least one text.")
    demand(
        len(lengths) == len(documents),
        f"{len(documents)} documents came with {len(lengths)} text lengths.",
        "Give one text length a document.",
    )
    words, size = sum(each.words for each in lengths), sum(each.bytes for each in lengths)
    demand(words > 0 and size > 0, "the texts have no words or no bytes.", "Give the lengths of the texts.")
    scorer = as_scorer(source)
    scores = tuple(
        by_token(list(scorer.score(rolling_windows(document, length, prefix_token)))) for document in documents
    )
    nll = overall(scores)
    tokens, windows = totals(scores)
    total = nll * tokens
    return RollingResult(
        protocol="lm-eval",
        length=length,
        parameters={
            "context_len": 1,
            "prefix_token": prefix_token,
            "mean": "over words and over bytes",
            "shorter_documents": shorter(documents, length),
        },
        traps=TRAPS,
        documents=scores,
        nll=nll,
        ppl=exponential(nll),
        tokens=tokens,
        windows=windows,
        passes=window_passes(scorer.prefix_invariant),
        lengths=tuple(lengths),
        word_perplexity=exponential(total / words),
        byte_perplexity=exponential(total / size),
        bits_per_byte=total / size / math.log(2),
    )
