"""From planned rows to layouts: which tokens, where they stand, which count."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data import Piece, PlannedRow, RowTokens, TokenCache, read_row
from ctxforge.calibrate.objectives.spans import Policy, Span, counted_spans
from ctxforge.calibrate.placement import Layout, cream, from_segments, full_length, pose, randomised
from ctxforge.calibrate.recipes import CalibrationPlan


def lay_out(plan: CalibrationPlan, caches: Sequence[TokenCache], row: PlannedRow, stage: int) -> Layout:
    """The layout of one row.

    Short rows hold documents end to end, each at positions 0, 1, ... and unseen by the others, whatever the placement:
    what short context loses, it loses there. Long rows stand as the plan's placement says.

    Args:
        plan: of the run.
        caches: of the sources, in the order that the pieces count them.
        row: as `plan_batch` gives it.
        stage: which stage of the plan it belongs to.
    """
    tokens = read_row(caches, row.pieces)
    learn = _learned(plan.recipe.objective.train_on, caches, row.pieces, tokens)
    mixed = plan.recipe.rows.placement == "mixed-windows"
    if row.kind == "short":
        return from_segments(
            tokens.ids, tokens.segments, learn=learn, trained_length=plan.trained_length if mixed else None
        )
    return _long_row(plan, tokens.ids, learn, stage, row.number)


def documents_of(row: Layout) -> list[Layout]:
    """Each document of a row as a row of its own, at the same positions with the same weights."""
    edges = [0, *(np.flatnonzero(np.diff(row.documents)) + 1).tolist(), row.length]
    return [
        Layout(
            row.ids[start:stop],
            row.positions[start:stop],
            np.zeros(stop - start, np.int64),
            row.weights[start:stop],
            row.extended[start:stop],
        )
        for start, stop in itertools.pairwise(edges)
    ]


def _long_row(
    plan: CalibrationPlan, ids: NDArray[np.int64], learn: NDArray[np.bool_], stage: int, number: int
) -> Layout:
    rows, length = plan.recipe.rows, plan.stages[stage].length
    seed = (plan.seed, stage, number)
    if rows.placement == "pose" and plan.target_length > length:
        return pose(ids, length, plan.target_length, seed, chunks=rows.chunks, content=rows.content, learn=learn)
    if rows.placement == "cream" and plan.target_length > length:
        return cream(ids, length, plan.target_length, seed, learn=learn)
    learn = learn[:length].copy()
    learn[0] = False
    if rows.placement == "randomised":
        return randomised(ids, seed, length=length).weighted(learn)
    return full_length(ids, length).weighted(learn)


def _learned(
    policy: Policy, caches: Sequence[TokenCache], pieces: Sequence[Piece], tokens: RowTokens
) -> NDArray[np.bool_]:
    """Which tokens count; for answers alone the data stage has said it already."""
    if policy == "answers" or not any(caches[piece.source].header.chat for piece in pieces):
        return tokens.learn
    found = []
    for piece in pieces:
        cache = caches[piece.source]
        spans = cache.assistant_spans(piece.document)
        length = int(cache.lengths[piece.document])
        marked = [Span(int(start), int(stop), True) for start, stop in (spans if spans is not None else [])]
        counted = counted_spans(marked, length, "all" if spans is None else policy)[piece.start : piece.stop]
        found.append(np.concatenate([np.zeros(len(cache.header.prefix), bool), counted]))
        found[-1][0] = False
    return np.concatenate(found)
