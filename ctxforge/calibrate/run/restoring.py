"""What the source says about a batch: its hidden states on the same texts at their own positions."""

from __future__ import annotations

import numpy as np
import torch

from ctxforge.calibrate.objectives.restoration import Restored, Teacher
from ctxforge.calibrate.placement import Batch, Layout, collate, model_inputs
from ctxforge.calibrate.recipes import CalibrationPlan

_JUMPING = ("pose", "cream")


def restored(plan: CalibrationPlan, teacher: Teacher, batch: Batch) -> Restored:
    """The states that a batch's tokens are held to: those within the trained length, of one contiguous text.

    Of a longer row these are its first tokens, whose states don't depend on what follows; of chunks that were sampled
    from different places of a text, the first chunk.

    Args:
        plan: of the run.
        teacher: the source.
        batch: as the model in training gets it.
    """
    rows = [_at_its_own_positions(plan, row) for row in batch.rows]
    inputs = model_inputs(collate(rows), teacher.model)
    length = inputs["input_ids"].shape[1]
    where = torch.arange(length, device=inputs["input_ids"].device)
    counts = torch.tensor([row.length for row in rows], device=where.device)
    return Restored(teacher.states(inputs), where[None] < counts[:, None], plan.recipe.objective.restoration)


def _at_its_own_positions(plan: CalibrationPlan, row: Layout) -> Layout:
    sampled = plan.recipe.rows.placement in _JUMPING and plan.recipe.rows.content == "sampled"
    stop = min(row.length, plan.trained_length)
    if sampled and not row.isolated:
        stop = min(stop, row.runs()[0].stop)
    documents = row.documents[:stop]
    starts = np.searchsorted(documents, documents)  # the first token of each token's document
    return Layout(
        row.ids[:stop], np.arange(stop) - starts, documents, row.weights[:stop], np.ones(stop, dtype=np.bool_)
    )
