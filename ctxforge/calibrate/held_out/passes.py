"""Forward passes over held-out windows, shared out over processes: sums of losses, and never a logit kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ctxforge.calibrate.objectives.cross_entropy import IGNORE
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.placement.builders import full_length
from ctxforge.calibrate.placement.inputs import model_inputs

BATCH_TOKENS = 4096
"""Tokens of a pass over several windows."""

Add = Callable[[list[float]], list[float]]


@dataclass(frozen=True, eq=False)
class Scored:
    """A window, and the parts of it whose losses are summed.

    Attributes:
        ids: [length].
        last: a sum each: over that many tokens at the end, at least 1 and at most length - 1.
    """

    ids: NDArray[np.int64]
    last: tuple[int, ...]


def summed(
    loss_model: LossModel, windows: Sequence[Scored], *, rank: int = 0, world: int = 1, add: Add = list
) -> list[tuple[float, ...]]:
    """For every window the sums of its parts' losses in nats, from passes in evaluation mode and without gradients.

    Neighbours of equal length go through the model together as long as they have no more than `BATCH_TOKENS` tokens.
    Who computes which pass changes no bit of the sums: a process adds exact zeros for the others' passes. Every process
    runs the same number of passes, since those of a sharded model wait for each other.

    Args:
        loss_model: the model, at the length of its windows.
        windows: what to measure.
        rank: number of this process.
        world: how many there are.
        add: adds lists element by element over the processes.
    """
    passes = list(_passes(windows))
    table = np.zeros((len(windows), max(len(window.last) for window in windows)))
    with evaluating(loss_model), torch.no_grad():
        for turn in range(0, len(passes), world):
            mine = passes[min(turn + rank, len(passes) - 1)]
            found = _losses(loss_model, [windows[index] for index in mine])
            if turn + rank < len(passes):
                for index, losses in zip(mine, found, strict=True):
                    table[index, : len(windows[index].last)] = [losses[-n:].sum() for n in windows[index].last]
    total = np.array(add(table.ravel().tolist())).reshape(table.shape)
    return [tuple(row[: len(window.last)].tolist()) for row, window in zip(total, windows, strict=True)]


def _passes(windows: Sequence[Scored]) -> Iterator[list[int]]:
    """Indices of the windows of each pass."""
    batch: list[int] = []
    for index, window in enumerate(windows):
        length = len(window.ids)
        if batch and (len(windows[batch[0]].ids) != length or (len(batch) + 1) * length > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _losses(loss_model: LossModel, windows: Sequence[Scored]) -> NDArray[np.float64]:
    """Losses of the last tokens of windows of one length, float64 [windows, most scored tokens]."""
    inputs = model_inputs([full_length(window.ids) for window in windows], loss_model.model)
    ids = inputs.pop("input_ids")
    most = max(max(window.last) for window in windows)
    assert 1 <= most < ids.shape[1]
    targets = torch.full_like(ids, IGNORE)
    # Row t predicts token t + 1; the head is spared rows whose losses nobody asked for.
    targets[:, -most - 1 : -1] = ids[:, -most:]
    losses = loss_model(ids, targets, 1.0, **inputs).losses
    found: NDArray[np.float64] = losses[:, -most - 1 : -1].double().cpu().numpy()
    return found


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each is in the mode it was in."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
