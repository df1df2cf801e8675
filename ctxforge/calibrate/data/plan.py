"""Which documents, and which of their tokens, a step trains on: a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.mixture import BLOCK, Mixture, StagePools
from ctxforge.calibrate.data.permute import draws
from ctxforge.calibrate.data.pools import Piece, RowKind
from ctxforge.errors import UsageError

_SLOTS = 4


@dataclass(frozen=True)
class PlannedRow:
    """One row of a batch.

    Attributes:
        kind: `long` or `short`.
        pieces: what it holds, in order; a long row has one. The tokenizer's prefix goes before each.
        number: of the row in its stage, over all processes; a seed for what else is drawn for the row.
    """

    kind: RowKind
    pieces: tuple[Piece, ...]
    number: int


@dataclass(frozen=True)
class BatchPlan:
    """The rows of one step on one process.

    Attributes:
        step: which step.
        stage: index of the stage that it falls into.
        length: tokens of a long row, prefix included.
        rows: in the order of the global batch; the processes' rows, joined by rank, are that batch.
        global_rows: rows of the whole batch.
    """

    step: int
    stage: int
    length: int
    rows: tuple[PlannedRow, ...]
    global_rows: int


def plan_batch(mixture: Mixture, seed: int, step: int, *, rank: int = 0, world: int = 1) -> BatchPlan:
    """The rows of a step. Nothing but the arguments decides about them, so a run resumes by its step alone.

    Args:
        mixture: what is drawn from.
        seed: any whole number from 0.
        step: from 0.
        rank: which process, 0 to world - 1.
        world: how many processes.

    Raises:
        UsageError: the batch's rows don't divide by the processes, or a rank, step or seed that can't be.
    """
    at = mixture.at(step)
    rows = at.stage.rows
    if seed < 0 or world < 1 or not 0 <= rank < world:
        raise UsageError(f"seed {seed}, process {rank} of {world} is not usable", "count them from 0")
    if rows % world:
        raise UsageError(
            f"a batch of {rows} rows does not divide by {world} processes",
            f"give a batch of {-(-rows // world) * world} rows, or a number of processes that divides {rows}",
        )
    first = (step - at.first_step) * rows + rank * (rows // world)
    stage = mixture.stages.index(at)
    planned = tuple(_row(at, stage, seed, number) for number in range(first, first + rows // world))
    return BatchPlan(step, stage, at.stage.length, planned, rows)


def _row(at: StagePools, stage: int, seed: int, number: int) -> PlannedRow:
    block, slot = divmod(number, BLOCK)
    chosen, before = _slots(at.counts, stage, seed, block)
    pool = at.pools[chosen[slot]]
    drawn = block * at.counts[chosen[slot]] + int(before[slot])
    return PlannedRow(pool.kind, pool.row(seed, drawn), number)


@lru_cache(maxsize=64)
def _slots(counts: tuple[int, ...], stage: int, seed: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pool of each of a block's rows, and how many of the pool's rows come before it in the block.

    Each pool's rows are spread evenly, from a random place on, so that every batch has about its share of each.
    """
    pools = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([np.arange(count) for count in counts])
    start = (draws(len(counts), seed, stage, _SLOTS, block) >> np.uint64(11)).astype(np.float64) / (1 << 53)
    order = np.argsort((before + start[pools]) / np.array(counts)[pools], kind="stable")
    return pools[order], before[order]
