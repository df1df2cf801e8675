"""What the source says about a batch: its hidden states on the same texts at their own positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ctxforge.calibrate.objectives.restoration import Restored, Teacher
from ctxforge.calibrate.placement import Batch, Layout, collate, model_inputs
from ctxforge.calibrate.placement.windows import Sight, sight
from ctxforge.calibrate.recipes import CalibrationPlan
from ctxforge.calibrate.run import model as models
from ctxforge.errors import UnsupportedError

if TYPE_CHECKING:
    from ctxforge.calibrate.run.request import Request


def restores(request: Request) -> bool:
    """Whether a run holds hidden states to the source's: its recipe says so, and the source is at hand.

    Raises:
        UnsupportedError: processes share a sequence.
    """
    if not request.plan.recipe.objective.restoration or request.source is None:
        return False
    if request.parallel.context > 1:
        raise UnsupportedError(
            "restoration holds whole texts to the source's states, and processes that share a sequence have parts",
            "add --set objective.restoration=0, or leave --context out",
        )
    return True


def notes_of(request: Request) -> tuple[str, ...]:
    """What people should know about a run's restoration, a sentence each."""
    if not request.plan.recipe.objective.restoration or request.source is not None:
        return ()
    return ("The source is not at hand: hidden states were not held to it (objective.restoration). Give --source.",)


def load_teacher(request: Request, device: torch.device) -> Teacher | None:
    """The source, for restoration; None where there is none.

    Raises:
        CtxforgeError: it can't be loaded; see `restores`.
    """
    if not restores(request):
        return None
    assert request.source is not None
    return Teacher(models.load(request.source, request.load, device))


def held_tokens(plan: CalibrationPlan, teacher: Teacher, batch: Batch) -> int:
    """How many tokens of a batch are held to the source's states; see `restored`."""
    seen = sight(teacher.model)
    return sum(_at_its_own_positions(plan, row, seen).length for row in batch.rows)


def restored(plan: CalibrationPlan, teacher: Teacher, batch: Batch, weight: float) -> Restored:
    """The states that a batch's tokens are held to: those within the trained length, of one contiguous text.

    Of a longer row these are its first tokens, whose states don't depend on what follows. Of chunks that were sampled
    from different places of a text it is the first chunk, and so it is where a layer's window counts positions: what
    the source sees through its window across a seam, the model in training does not.

    Args:
        plan: of the run.
        teacher: the source.
        batch: as the model in training gets it.
        weight: see `Restored`.
    """
    seen = sight(teacher.model)
    rows = [_at_its_own_positions(plan, row, seen) for row in batch.rows]
    inputs = model_inputs(collate(rows), teacher.model)
    length = inputs["input_ids"].shape[1]
    where = torch.arange(length, device=inputs["input_ids"].device)
    counts = torch.tensor([row.length for row in rows], device=where.device)
    return Restored(teacher.states(inputs), where[None] < counts[:, None], weight)


def _at_its_own_positions(plan: CalibrationPlan, row: Layout, seen: Sight) -> Layout:
    rows = plan.recipe.rows
    whole = rows.placement not in ("pose", "cream")
    if rows.placement == "pose" and rows.content == "contiguous":
        whole = not seen.narrows(collate([row]))
    stop = min(row.length, plan.trained_length)
    if not (whole or row.isolated):
        stop = min(stop, row.runs()[0].stop)
    documents = row.documents[:stop]
    starts = np.searchsorted(documents, documents)  # the first token of each token's document
    return Layout(
        row.ids[:stop], np.arange(stop) - starts, documents, row.weights[:stop], np.ones(stop, dtype=np.bool_)
    )
