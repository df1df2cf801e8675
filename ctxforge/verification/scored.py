"""Answers of the retrieval grid as numbers: the units of its statistics, and its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer as a unit of statistics: the same (seed, length, stratum) of two models is the same prompt.

    Attributes:
        seed: number of the haystack.
        length: tokens of context.
        stratum: of the needle's depth, of `strata`.
        strata: depth strata at this length.
        nll: mean loss of the answer's tokens, in nats.
        exact: whether all of them are the argmax, which is what greedy decoding would have to produce.
    """

    seed: int
    length: int
    stratum: int
    strata: int
    nll: float
    exact: bool


@dataclass(frozen=True)
class RetrievalCell:
    """A cell of the grid over all haystacks.

    The needles of the cell begin between `depth_start` and `depth_end`, as fractions of `length`; `nll` is the mean
    over `count` needles of the mean answer loss in nats a token, `exact` counts the answers that greedy decoding finds.
    """

    length: int
    stratum: int
    depth_start: float
    depth_end: float
    nll: float
    exact: int
    count: int


def grid(scored: Sequence[ScoredAnswer]) -> list[RetrievalCell]:
    """Gather the answers of all haystacks into cells, by length and stratum."""
    cells: dict[tuple[int, int, int], list[ScoredAnswer]] = {}
    for answer in scored:
        cells.setdefault((answer.length, answer.stratum, answer.strata), []).append(answer)
    return [
        RetrievalCell(
            length=length,
            stratum=stratum,
            depth_start=stratum / strata,
            depth_end=(stratum + 1) / strata,
            nll=sum(a.nll for a in group) / len(group),
            exact=sum(a.exact for a in group),
            count=len(group),
        )
        for (length, stratum, strata), group in sorted(cells.items())
    ]
