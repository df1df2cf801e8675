"""What a protocol returns: its name, its parameters, its traps, and one value and weight a document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctxforge.errors import UsageError
from ctxforge.verification.perplexity import Losses, perplexity

Parameter = int | float | str | bool | None
FloatArray = npt.NDArray[np.float64]

PASS_PER_WINDOW = "one pass a window"
_DEPENDS = "this model's rotation depends on the length of the input"
PASS_PER_LENGTH = f"one pass a length: {_DEPENDS}"


@dataclass(frozen=True)
class DocumentScore:
    """One document under a protocol.

    Attributes:
        value: its loss in nats as the protocol averages it; not a number where nothing of it was scored.
        weight: its weight in the protocol's mean: scored tokens, windows, or what the protocol makes of them.
        tokens: predicted tokens that were scored, counted as often as they were.
        windows: forward passes over it.
    """

    value: float
    weight: float
    tokens: int
    windows: int


@dataclass(frozen=True)
class ProtocolResult:
    """A text under one protocol at one length.

    Attributes:
        protocol: name, as in `PROTOCOLS`.
        length: window length in tokens.
        parameters: everything else that the number depends on.
        traps: what this number hides or distorts, a sentence each, for the report.
        documents: the units of the statistics. sum(weight * value) / sum(weight) is `nll`, exactly.
        nll: mean loss in nats as the protocol takes it.
        ppl: the protocol's perplexity.
        tokens: predicted tokens that were scored, counted as often as they were.
        windows: windows that were scored.
        passes: how the forward passes relate to windows and lengths.
    """

    protocol: str
    length: int
    parameters: Mapping[str, Parameter]
    traps: tuple[str, ...]
    documents: tuple[DocumentScore, ...]
    nll: float
    ppl: float
    tokens: int
    windows: int
    passes: str

    @property
    def values(self) -> FloatArray:
        """Loss of every document, [documents]: with `weights`, what a paired bootstrap takes."""
        return np.array([document.value for document in self.documents], dtype=np.float64)

    @property
    def weights(self) -> FloatArray:
        """Weight of every document, [documents]."""
        return np.array([document.weight for document in self.documents], dtype=np.float64)


def by_token(parts: Sequence[Losses]) -> DocumentScore:
    """A document scored by the mean over its tokens, from the losses of its windows."""
    tokens = sum(part.size for part in parts)
    total = sum(float(part.sum(dtype=np.float64)) for part in parts)
    return DocumentScore(total / tokens if tokens else math.nan, float(tokens), tokens, len(parts))


def by_window(parts: Sequence[Losses], weights: Sequence[float] | None = None) -> DocumentScore:
    """A document scored by the mean of its windows' means, each of weight 1 or as given."""
    weights = [1.0] * len(parts) if weights is None else weights
    means = [float(part.mean(dtype=np.float64)) for part in parts]
    weight = math.fsum(weights)
    total = math.fsum(w * mean for w, mean in zip(weights, means, strict=True))
    return DocumentScore(total / weight if weight else math.nan, weight, sum(p.size for p in parts), len(parts))


def exponential(nll: float) -> float:
    """exp(nll): infinite where a float cannot hold it, not a number for no number."""
    return nll if math.isnan(nll) else perplexity(nll)


def overall(documents: Sequence[DocumentScore]) -> float:
    """sum(weight * value) / sum(weight) over the documents that have a weight; nan when none has."""
    counted = [document for document in documents if document.weight > 0]
    weight = math.fsum(document.weight for document in counted)
    if not weight:
        return math.nan
    # sum and not fsum, which refuses infinities.
    return sum(document.weight * document.value for document in counted) / weight


def totals(documents: Sequence[DocumentScore]) -> tuple[int, int]:
    """Scored tokens and windows of all documents."""
    return sum(document.tokens for document in documents), sum(document.windows for document in documents)


def window_passes(prefix_invariant: bool) -> str:
    """How the passes of a protocol with windows of one length are described in a result."""
    return PASS_PER_WINDOW if prefix_invariant else f"{PASS_PER_WINDOW}, each from the short state: {_DEPENDS}"


def shorter(documents: Sequence[Sequence[int]], wanted: int) -> int:
    """How many documents have fewer than `wanted` tokens."""
    return sum(len(document) < wanted for document in documents)


def demand(condition: bool, cause: str, remedy: str) -> None:
    """Raise a UsageError of `cause` and `remedy` unless the condition holds."""
    if not condition:
        raise UsageError(cause, remedy)
