"""Trains on the processes that started it: `parallel_child.py JOBS OUT`, JOBS a JSON list of `Job`s.

Every job runs in the same processes, one after the other, and leaves OUT/NAME-RANK.pt.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ctxforge.calibrate.adapters import AdapterRecipe, Trained, attach, named_recipe
from ctxforge.calibrate.memory.checkpointing import Checkpointing
from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.parallel import ParallelOptions, Processes, start
from ctxforge.calibrate.parallel.states import whole_tensor
from ctxforge.calibrate.placement.batch import collate
from ctxforge.calibrate.placement.batch import next_tokens as next_of
from ctxforge.calibrate.placement.inputs import model_inputs
from ctxforge.calibrate.placement.layout import Layout
from ctxforge.checkpoint import read_checkpoint
from ctxforge.errors import CtxforgeError

# Lengths of the rows of one step. The two halves hold 67 and 24 tokens that count.
LENGTHS = (30, 24, 17, 12, 9, 6)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        base: checkpoint's folder.
        recipe: "lora", "lora+" or "full".
        steps: optimiser steps.
        first: number of the first one, which chooses its rows.
        own: divide by this process's own tokens and not by all of them: the mean of means, which is wrong.
        empty: all rows are the first process's: the others have one without targets.
        uneven: the processes cut their rows into different numbers of micro-batches.
        forget: resume without the optimiser's state.
        resume, save: folders of an adapter and its optimiser.
    """

    name: str
    base: str
    recipe: str = "lora"
    dtype: str = "float32"
    steps: int = 2
    first: int = 0
    own: bool = False
    uneven: bool = False
    empty: bool = False
    weighted: bool = False
    forget: bool = False
    resume: str | None = None
    save: str | None = None
    limit: float = 1e9
    checkpointing: bool = False
    tile: int = 0
    attention: str = "sdpa"
    options: dict[str, Any] = field(default_factory=dict)


def recipe_of(name: str) -> AdapterRecipe:
    return named_recipe(name) if name == "full" else named_recipe(name, rank=4, alpha=6.0)


def rows_of(step: int, *, weighted: bool = False) -> list[Layout]:
    """The rows of one step, over all processes, the longest first."""
    generator = torch.Generator().manual_seed(100 + step)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, 96, (length,), generator=generator).numpy()
        weights = torch.rand(length, generator=generator).numpy() + 0.5 if weighted else None
        rows.append(layout_of(ids, weights))
    return rows


def layout_of(ids: Any, weights: Any = None) -> Layout:
    import numpy as np

    length = len(ids)
    weights = np.ones(length, dtype=np.float32) if weights is None else weights.astype(np.float32)
    weights[0] = 0
    return Layout(
        ids=ids.astype(np.int64),
        positions=np.arange(length),
        documents=np.zeros(length, dtype=np.int64),
        weights=weights,
        extended=np.ones(length, dtype=bool),
    )


def model_of(job: Job) -> tuple[Any, Trained]:
    model = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=getattr(torch, job.dtype), attn_implementation=job.attention
    )
    trained = attach(model, read_checkpoint(Path(job.base)), recipe_of(job.recipe))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # B starts at 0, and A would have no gradient
        for _, parameter in trained.tensors():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), trained


def make_optimiser(groups: dict[str, list[torch.nn.Parameter]]) -> torch.optim.Optimizer:
    # Of the roles, in an order that isn't that of the tensors' names.
    return torch.optim.AdamW([{"params": groups[name]} for name in sorted(groups, reverse=True)], lr=1e-2, eps=1e-3)


def micro_batches(rows: list[Layout], job: Job, processes: Processes) -> list[list[Layout]]:
    """This process's rows: a run of them, so that the first process has the long ones."""
    if job.empty and processes.data_rank:
        return [[replace(rows[-1], weights=0 * rows[-1].weights)]]
    share = len(rows) if job.empty else -(-len(rows) // processes.data_world)
    own = rows[processes.data_rank * share : (processes.data_rank + 1) * share]
    if job.empty:
        return [own]
    size = len(own) if job.uneven and processes.data_rank else 1
    return [own[i : i + size] for i in range(0, len(own), size)]


def run(job: Job, processes: Processes) -> dict[str, Any]:
    model, trained = model_of(job)
    loss_model = LossModel(model, slice_rows=16)
    loss_model.check()
    if job.tile:
        TiledMLPs(model, job.tile)
    if job.checkpointing:
        Checkpointing(model)
    prepared = processes.prepare(loss_model, trained, make_optimiser)
    notes: dict[str, Any] = {}
    if job.resume is not None:
        notes = dict(processes.restore(Path(job.resume), prepared).notes)
        if not job.forget:
            processes.load_optimiser_state(prepared, torch.load(Path(job.resume) / "optimiser.pt"))
    found: dict[str, Any] = {"losses": [], "norms": [], "notes": notes, "micro": 0}
    for step in range(job.first, job.first + job.steps):
        batches = [
            collate(part, multiple=processes.length_multiple)
            for part in micro_batches(rows_of(step, weighted=job.weighted), job, processes)
        ]
        labels = [next_of(batch) for batch in batches]
        targets = [torch.tensor(label, device=processes.device) for label, _ in labels]
        weights = [torch.tensor(weight, device=processes.device) for _, weight in labels]
        denominator = processes.denominator(targets)
        if job.own:
            denominator = float(sum(int((one >= 0).sum()) for one in targets))
        total = 0.0
        for number, batch in enumerate(batches):
            inputs = model_inputs(batch, model)
            part = processes.step_part(
                prepared,
                inputs,
                targets[number],
                denominator,
                weights[number],
                last=number == len(batches) - 1,
            )
            total += float((part.losses * part.weights).sum())
            found["micro"] += 1
        found["losses"].append(processes.total(total))
        if "gradients" not in found:
            found["gradients"] = {name: whole_tensor(p.grad) for name, p in prepared.trained.tensors()}
        found["norms"].append(processes.clip([p for _, p in prepared.trained.tensors()], job.limit))
        prepared.optimiser.step()
        prepared.optimiser.zero_grad()
    found["weights"] = {name: whole_tensor(p) for name, p in prepared.trained.tensors()}
    found["most"] = processes.most(found["micro"])
    found["kinds"] = sorted({type(p).__name__ for _, p in prepared.trained.tensors()})
    if job.save is not None:
        processes.save(Path(job.save), prepared, {"steps": job.first + job.steps})
        state = processes.optimiser_state(prepared)
        if processes.is_main:
            torch.save(state, Path(job.save) / "optimiser.pt")
        found["state"] = state
        processes.wait()
    return found


def main(jobs: Path, out: Path) -> None:
    for document in json.loads(jobs.read_text()):
        job = Job(**document)
        try:
            processes = start(ParallelOptions(**{"cpu": True, **job.options}))
            found = run(job, processes)
        except CtxforgeError as error:
            found = {"error": f"{type(error).__name__}: {error.cause} | {error.remedy}"}
        torch.save(found, out / f"{job.name}-{processes.rank}.pt")
    processes.wait()
    processes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
