"""One step of the optimiser: a function of the plan, the data and the step's number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ctxforge.calibrate.data import BatchPlan, Mixture, plan_batch
from ctxforge.calibrate.objectives.cross_entropy import IGNORE, Weigher
from ctxforge.calibrate.objectives.long_ce import LongCESettings, LongCEWeigher, losses_of, short_losses
from ctxforge.calibrate.objectives.restoration import Teacher
from ctxforge.calibrate.parallel import Prepared, Processes
from ctxforge.calibrate.placement import Batch, model_inputs, next_tokens
from ctxforge.calibrate.recipes import CalibrationPlan
from ctxforge.calibrate.run.batches import micro_batches
from ctxforge.calibrate.run.restoring import held_tokens, restored
from ctxforge.calibrate.run.rows import documents_of, lay_out
from ctxforge.calibrate.run.sharing import from_all
from ctxforge.errors import CheckpointError


@dataclass(frozen=True)
class Training:
    """What every step of a run works with.

    Attributes:
        plan: of the run.
        mixture: what is drawn from.
        processes, prepared: what is trained, and where.
        tokens_at_once: of a forward pass.
        choose_rotation: told before each pass which tokens take the target's rotation; see `two_rotations`.
        set_scale_base: told before each step how many are done.
        teacher: the source, whose hidden states are held to; None for none.
    """

    plan: CalibrationPlan
    mixture: Mixture
    processes: Processes
    prepared: Prepared
    tokens_at_once: int
    choose_rotation: Callable[[Any], None] | None = None
    set_scale_base: Callable[[int], None] | None = None
    teacher: Teacher | None = None


@dataclass(frozen=True)
class StepResult:
    """What a step saw, over all processes.

    Attributes:
        loss: mean loss of the tokens that count, before the step, in nats a token.
        tokens: tokens of the rows, padding left out.
        counted: those that count.
        norm: of the gradient, before it was clipped.
        apart: mean distance of the tokens that are held to the source's states; None where there are none.
    """

    loss: float
    tokens: int
    counted: int
    norm: float
    apart: float | None = None


class NotFiniteError(CheckpointError):
    """A loss or a gradient that is NaN or infinite: the step is not taken."""


def gradients(training: Training, step: int) -> StepResult:
    """Forward and backward passes of a step; gradients are left on the parameters, clipped.

    Raises:
        NotFiniteError: a loss or the gradient is not finite; it names the step and the documents.
    """
    plan, processes, prepared = training.plan, training.processes, training.prepared
    _seed(plan.seed, step, processes.rank)
    planned = plan_batch(training.mixture, plan.seed, step, rank=processes.data_rank, world=processes.data_world)
    rows = [lay_out(plan, training.mixture.caches, row, planned.stage) for row in planned.rows]
    if processes.shared:
        # A sequence that is cut takes no masks, so each document of a packed row is a row: the same sum of losses.
        rows = [part for row in rows for part in documents_of(row)]
    batches = micro_batches(rows, training.tokens_at_once, multiple=processes.length_multiple)
    device = processes.device
    targets = [torch.from_numpy(next_tokens(batch)[0]).to(device) for batch in batches]
    denominator = processes.denominator(targets)
    spare = processes.most(len(batches)) - len(batches) if processes.options.shard else 0
    prepared.optimiser.zero_grad(set_to_none=True)
    if training.set_scale_base is not None:
        training.set_scale_base(step)
    sums: list[torch.Tensor] = []
    held, weight = _held(training, batches, targets)
    apart: list[torch.Tensor] = []
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        weights = _weigher(training, batch)
        if training.choose_rotation is not None:
            training.choose_rotation(batch.extended)
        inputs = model_inputs(batch, prepared.inner.model)
        if training.teacher is not None:
            inputs["restored"] = restored(plan, training.teacher, batch, weight)
        found = processes.step_part(
            prepared,
            inputs,
            target,
            denominator,
            weights,
            last=spare == 0 and number == len(batches) - 1,
        )
        sums.append(found.losses[target != IGNORE].double().sum())
        apart += [] if found.apart is None else [found.apart]
    for number in range(spare):
        # Sharded processes gather weights together: each needs as many passes as the one with most.
        nothing = torch.full_like(targets[-1], IGNORE)
        inputs = model_inputs(batches[-1], prepared.inner.model)
        processes.step_part(prepared, inputs, nothing, denominator, None, last=number == spare - 1)
    result = _result(training, planned, batches, targets, sums)
    # All processes ask, those without a row as well.
    distance = processes.total(sum(float(one) for one in apart)) if held else None
    return replace(result, apart=distance if distance is None else distance / held)


def _held(training: Training, batches: list[Batch], targets: list[torch.Tensor]) -> tuple[float, float]:
    """Tokens that are held to the source's states, over all processes, and the weight of the sum of their distances.

    Both sums are divided by the tokens that count, so what makes the distance a mean stands in its weight.
    """
    if training.teacher is None:
        return 0, 0.0
    plan, processes = training.plan, training.processes
    held = processes.total(sum(held_tokens(plan, training.teacher, batch) for batch in batches))
    counted = processes.total(sum(int((target != IGNORE).sum()) for target in targets))
    return held, plan.recipe.objective.restoration * counted / max(held, 1.0)


def _result(
    training: Training, planned: BatchPlan, batches: list[Batch], targets: list[torch.Tensor], sums: list[torch.Tensor]
) -> StepResult:
    processes = training.processes
    limit = training.plan.recipe.optimiser.clip
    norm = processes.clip([p for _, p in training.prepared.trained.tensors()], math.inf if limit is None else limit)
    each = [float(one) for one in sums]
    counted = processes.total(sum(int((target != IGNORE).sum()) for target in targets))
    total = processes.total(sum(each))
    if not (math.isfinite(total) and math.isfinite(norm)):
        bad = next((number for number, one in enumerate(each) if not math.isfinite(one)), None)
        pieces = {(piece.source, piece.document) for row in planned.rows for piece in row.pieces}
        # The process that speaks need not be the one whose loss it is.
        found = from_all(processes, (bad, pieces))
        guilty = [one for one in found if one[0] is not None][:1] or found
        raise NotFiniteError(
            f"step {planned.step + 1}: {_what(guilty[0][0], norm)};"
            f" {_documents(set().union(*(theirs for _, theirs in guilty)))}",
            "lower optimiser.learning_rate or leave these out, and add --fresh; till then the state before is kept",
        )
    tokens = processes.total(sum(batch.tokens for batch in batches))
    return StepResult(total / max(counted, 1.0), round(tokens), round(counted), norm)


def _what(bad: int | None, norm: float) -> str:
    return f"the gradient's norm is {norm}" if bad is None else f"the loss of forward pass {bad + 1} is not a number"


def _documents(found: set[tuple[int, int]]) -> str:
    pieces = sorted(found)
    shown = ", ".join(f"{document} of source {source + 1}" for source, document in pieces[:8])
    more = f" and {len(pieces) - 8} more" if len(pieces) > 8 else ""
    return f"its rows hold documents {shown}{more}"


def _weigher(training: Training, batch: Batch) -> Weigher | None:
    """LongCE's weights for a batch; None where every token that counts counts 1."""
    plan, inner = training.plan, training.prepared.inner
    if plan.recipe.objective.kind != "longce":
        return None
    settings = LongCESettings(plan.context, plan.refresh, plan.recipe.objective.ceiling)
    short = torch.full(batch.ids.shape, torch.nan, device=training.processes.device)
    if training.choose_rotation is not None:
        training.choose_rotation(None)
    inner.eval()
    for number, row in enumerate(batch.rows):
        ids = torch.from_numpy(np.array(row.ids)).to(short.device)
        edges = [0, *(np.flatnonzero(np.diff(row.documents)) + 1).tolist(), row.length]
        # Mixed windows: a text on the source's rotation is short, and counts as it is.
        documents = [(start, stop) for start, stop in itertools.pairwise(edges) if row.extended[start]]
        if documents:
            short[number, : row.length] = short_losses(losses_of(inner), ids, settings, documents)
    inner.train()
    return LongCEWeigher(short, settings.ceiling)


def _seed(seed: int, step: int, rank: int) -> None:
    """Seed what a step draws (dropout), so that it does not depend on the steps before."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))
