"""What one model scored on one text."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.verification.far_context import FarContext
from ctxforge.verification.perplexity import BucketScore, LengthScore
from ctxforge.verification.protocols.result import ProtocolResult
from ctxforge.verification.scored import RetrievalCell, ScoredAnswer
from ctxforge.verification.tasks.types import PromptScore


@dataclass(frozen=True)
class Measures:
    """What one model scored.

    Attributes:
        label: name of the model in tables and plots.
        lengths: cumulative perplexity at every context length; empty when the curve was not measured.
        buckets: perplexity by position; empty likewise.
        retrieval: cells of the grid.
        answers: every answer of the grid, the units that its intervals are made from.
        window_buckets: `buckets` of each window apart, the units likewise.
        short_windows: mean loss in nats of each window of the trained length, in order of the text.
        beyond: mean loss of the tokens beyond the trained length, window by window, with the whole context.
        truncated: the same tokens with the last trained length of context only; empty unless it was asked for.
        cache_difference: see `cache_check`; None for a model that keeps no cache.
        cache_rounding: see `cache_check`; 0 in float32.
        passes: "one pass" when the longest pass gave every length, "one pass a length" when it could not.
        retrieval_way: how the grid was computed; empty when it was not.
        head: "sliced" or "full", see `OnePass.head_kind`.
        attention: name of the attention implementation.
        dtype: of the weights.
        finite: False when a loss was not a finite number.
        tasks: scores of every prompt of the tasks that were asked for.
        protocols: perplexity under the protocols that were asked for.
        far_context: LongPPL and what far context is worth to the model; None unless it was asked for.
    """

    label: str
    lengths: tuple[LengthScore, ...]
    buckets: tuple[BucketScore, ...]
    retrieval: tuple[RetrievalCell, ...]
    answers: tuple[ScoredAnswer, ...]
    window_buckets: tuple[tuple[BucketScore, ...], ...]
    short_windows: tuple[float, ...]
    beyond: tuple[float, ...]
    truncated: tuple[float, ...]
    cache_difference: float | None
    passes: str
    retrieval_way: str
    head: str
    attention: str
    dtype: str
    finite: bool
    tasks: tuple[PromptScore, ...] = ()
    protocols: tuple[ProtocolResult, ...] = ()
    far_context: FarContext | None = None
    cache_rounding: float = 0.0
