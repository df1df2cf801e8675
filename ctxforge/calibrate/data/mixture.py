"""What a calibration draws from: sources with their shares, and stages with their lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxforge.calibrate.data.cache import TokenCache, require_length
from ctxforge.calibrate.data.pools import Pool, long_pool, short_pool
from ctxforge.calibrate.data.split import Ranges
from ctxforge.errors import UsageError

BLOCK = 1000
"""Rows in which every share is met exactly, rounded to a thousandth."""


@dataclass(frozen=True)
class Stage:
    """Some steps with one length.

    Attributes:
        steps: how many; the last stage goes on as long as steps are asked of it.
        length: tokens of a long row: a window of one document, with the tokenizer's prefix.
        rows: rows of a batch, over all processes.
    """

    steps: int
    length: int
    rows: int

    def __post_init__(self) -> None:
        if min(self.steps, self.length, self.rows) < 1:
            raise UsageError(
                f"a stage of {self.steps} steps, {self.length} tokens, {self.rows} rows", "give at least 1"
            )


@dataclass(frozen=True, eq=False)
class StagePools:
    """What one stage draws from.

    Attributes:
        stage: its length and rows.
        first_step: its first step.
        short_length: tokens of a short row, at most, prefixes included.
        pools: long and short rows of each source.
        counts: rows of each pool among `BLOCK` rows; sums to `BLOCK`.
    """

    stage: Stage
    first_step: int
    short_length: int
    pools: tuple[Pool, ...]
    counts: tuple[int, ...]

    @property
    def short_share(self) -> float:
        """The share of short rows that comes out: more than was asked for where sources lack long documents."""
        return sum(n for pool, n in zip(self.pools, self.counts, strict=True) if pool.kind == "short") / BLOCK

    def source_share(self, source: int) -> float:
        """The share of the rows that come from one source."""
        return sum(n for pool, n in zip(self.pools, self.counts, strict=True) if pool.source == source) / BLOCK


@dataclass(frozen=True, eq=False)
class Mixture:
    """Everything that `plan_batch` draws from; it holds no state of a run.

    Attributes:
        parts: the stretches of each source that may be drawn.
        stages: the curriculum.
    """

    parts: tuple[Ranges, ...]
    stages: tuple[StagePools, ...]

    @property
    def caches(self) -> tuple[TokenCache, ...]:
        """Whose tokens the pieces count, by source."""
        return tuple(part.cache for part in self.parts)

    def at(self, step: int) -> StagePools:
        """The stage that a step falls into."""
        if step < 0:
            raise UsageError(f"step {step} does not exist", "count steps from 0")
        return next(one for one in reversed(self.stages) if one.first_step <= step)


def make_mixture(
    parts: Sequence[Ranges],
    stages: Sequence[Stage],
    *,
    weights: Sequence[float | None] | None = None,
    short_share: float = 0.3,
    short_length: int | None = None,
) -> Mixture:
    """Sources and stages, checked and indexed.

    A row comes from a source by the sources' weights, and inside each source it is long with 1 - short_share: so the
    long documents of every source are drawn more often than they occur, and the mix of sources stays (2402.10171,
    section 4, per-source length upsampling). A source without long documents gives short rows alone. Where a source
    has no document below the stage's length, its short rows are the beginnings and further pieces of long ones.

    Args:
        parts: the stretches of each source to draw from, such as `Split.train`.
        stages: lengths in order, such as `curriculum` makes them (2309.16039, section 4.3).
        weights: the share of rows of each source; those that are None share what the others leave of 1 by their
            tokens. None for all: by tokens.
        short_share: of the rows, 0 to 1.
        short_length: tokens of a short row; None takes each stage's own length.

    Raises:
        UsageError: no document reaches a stage's length, or weights, shares or stages that can't be.
    """
    if not stages or not any(map(len, parts)):
        raise UsageError("there is nothing to draw from", "give at least one stage, and data")
    if not 0 <= short_share <= 1:
        raise UsageError(f"a share of short rows of {short_share:g} is not usable", "give a share from 0 to 1")
    shares = _shares(parts, weights)
    built = []
    first = 0
    for index, stage in enumerate(stages):
        built.append(_stage_pools(parts, shares, stage, first, (index, short_share, short_length or stage.length)))
        first += stage.steps
    return Mixture(tuple(parts), tuple(built))


def curriculum(
    steps: int, tokens: int, *, length: int, short: int | None = None, short_steps: float = 0.4
) -> tuple[Stage, ...]:
    """Batches of about `tokens` tokens: first of short rows, then of long ones (2309.16039, section 4.3).

    Args:
        steps: in all.
        tokens: of a batch; the rows of each stage are `tokens // length`, at least one.
        length: of the rows in the end.
        short: of the rows at first; None leaves that stage out.
        short_steps: the share of the steps before the change.
    """
    early = round(steps * short_steps) if short is not None and short < length else 0
    lengths = ([(early, short)] if early and short is not None else []) + [(steps - early, length)]
    return tuple(Stage(count, size, max(1, tokens // size)) for count, size in lengths if count > 0)


def _shares(parts: Sequence[Ranges], weights: Sequence[float | None] | None) -> list[float]:
    given = list(weights) if weights is not None else [None] * len(parts)
    if len(given) != len(parts):
        raise UsageError(f"there are {len(given)} weights for {len(parts)} sources", "give one a source")
    if any(one is not None and not 0 <= one < math.inf for one in given):
        raise UsageError(f"the weights {given} are not all positive numbers", "give weights such as 0.3")
    told = sum(one for one in given if one is not None)
    tokens = sum(part.tokens for part, one in zip(parts, given, strict=True) if one is None)
    if tokens and told >= 1:
        raise UsageError(
            f"the weights sum to {told:g} and leave nothing to the sources without one",
            "give every source a weight, or weights that sum to less than 1",
        )
    raw = [
        (1 - told) * part.tokens / tokens if one is None and tokens else (one or 0.0)
        for part, one in zip(parts, given, strict=True)
    ]
    raw = [share if len(part) else 0.0 for share, part in zip(raw, parts, strict=True)]
    if not sum(raw):
        raise UsageError("no source with data has a weight above 0", "give one a weight")
    return [share / sum(raw) for share in raw]


def _stage_pools(
    parts: Sequence[Ranges], shares: Sequence[float], stage: Stage, first: int, more: tuple[int, float, int]
) -> StagePools:
    index, short_share, short_length = more
    pools: list[Pool] = []
    wanted: list[float] = []
    for source, (part, share) in enumerate(zip(parts, shares, strict=True)):
        if not share:
            continue
        prefix = len(part.cache.header.prefix)
        if min(stage.length, short_length) <= 2 * prefix:
            raise UsageError(f"rows of {min(stage.length, short_length)} tokens hold no text", "give longer rows")
        reaches = part.lengths >= stage.length - prefix
        short = short_share if reaches.any() else 1.0
        if short < 1:
            pools.append(long_pool(part.take(reaches), stage.length - prefix, source, index))
            wanted.append(share * (1 - short))
        if short > 0:
            # A source without long rows keeps its long documents for the short ones.
            rest = part if short == 1 or reaches.all() else part.take(~reaches)
            pools.append(short_pool(rest, short_length - prefix, source, index))
            wanted.append(share * short)
    if short_share < 1 and not any(pool.kind == "long" for pool in pools):
        _too_short(parts, stage.length)
    return StagePools(stage, first, short_length, tuple(pools), _rounded(wanted))


def _too_short(parts: Sequence[Ranges], length: int) -> None:
    require_length([part.cache for part in parts], length)
    longest = max(int(part.lengths.max(initial=0)) for part in parts)
    raise UsageError(
        f"what is trained on holds no {length} tokens in a row, but {longest}",
        "hold out a smaller share, give longer documents, or train at a shorter length",
    )


def _rounded(wanted: Sequence[float]) -> tuple[int, ...]:
    """Whole rows of `BLOCK` in proportion to `wanted`, by largest remainder; at least one for each."""
    if len(wanted) > BLOCK:
        raise UsageError(f"{len(wanted)} pools are more than {BLOCK} rows", "give fewer sources")
    exact = np.array(wanted) / sum(wanted) * BLOCK
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return tuple(int(one) for one in counts)
