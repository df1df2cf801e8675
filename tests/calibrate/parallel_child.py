"""Trains on the processes that started it: `parallel_child.py JOBS OUT`, JOBS a JSON list of `Job`s.

Every job runs in the same processes, one after the other, and leaves OUT/NAME-RANK.pt.
"""

from __future__ import annotations

import json
import os
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
from ctxforge.calibrate.parallel import ParallelOptions, Prepared, Processes, start
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
        packed: the longest row holds two documents.
        padded: rows have the length that their processes ask for.
        mixing: a model that lets every token see the one before it, outside attention.
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
    packed: bool = False
    padded: bool = True
    mixing: bool = False
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


def rows_of(step: int, *, weighted: bool = False, packed: bool = False) -> list[Layout]:
    """The rows of one step, over all processes, the longest first."""
    generator = torch.Generator().manual_seed(100 + step)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, 96, (length,), generator=generator).numpy()
        weights = torch.rand(length, generator=generator).numpy() + 0.5 if weighted else None
        rows.append(layout_of(ids, weights, packed=packed and not rows))
    return rows


def layout_of(ids: Any, weights: Any = None, *, packed: bool = False) -> Layout:
    import numpy as np

    length = len(ids)
    weights = np.ones(length, dtype=np.float32) if weights is None else weights.astype(np.float32)
    second = length // 2 if packed else length
    weights[0] = weights[second:][:1] = 0
    return Layout(
        ids=ids.astype(np.int64),
        positions=np.concatenate([np.arange(second), np.arange(length - second)]),
        documents=(np.arange(length) >= second).astype(np.int64),
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


def passes(job: Job, processes: Processes, model: Any, step: int) -> list[tuple[dict[str, Any], Any, Any]]:
    """This process's micro-batches of a step: inputs, targets and weights."""
    found = []
    rows = rows_of(step, weighted=job.weighted, packed=job.packed)
    for part in micro_batches(rows, job, processes):
        batch = collate(part, multiple=processes.length_multiple if job.padded else 1)
        labels, weights = next_of(batch)
        on = processes.device
        found.append((model_inputs(batch, model), torch.tensor(labels, device=on), torch.tensor(weights, device=on)))
    return found


def mix_tokens(model: Any) -> None:
    """Add to what each layer's MLP gives what it gives for the token before."""
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _module, _inputs, out: out + out.roll(1, dims=1))


def look_at(processes: Processes, prepared: Prepared, batch: tuple[dict[str, Any], Any, Any]) -> Any:
    inputs, targets, weights = batch
    return processes.losses(prepared, inputs, targets, weights=weights)


def run(job: Job, processes: Processes) -> dict[str, Any]:
    model, trained = model_of(job)
    if job.mixing:
        mix_tokens(model)
    loss_model = LossModel(model, slice_rows=16)
    loss_model.check()
    if job.tile:
        TiledMLPs(model, job.tile)
    if job.checkpointing:
        Checkpointing(model)
    prepared = processes.prepare(loss_model, trained, make_optimiser)
    found: dict[str, Any] = {"losses": [], "norms": [], "notes": {}, "micro": 0}
    look = passes(job, processes, model, 99)
    found["before"] = processes.total(sum(float(look_at(processes, prepared, one).loss) for one in look))
    if job.resume is not None:
        found["notes"] = dict(processes.restore(Path(job.resume), prepared).notes)
        if not job.forget:
            processes.load_optimiser_state(prepared, torch.load(Path(job.resume) / "optimiser.pt"))
    for step in range(job.first, job.first + job.steps):
        batches = passes(job, processes, model, step)
        targets = [target for _, target, _ in batches]
        denominator = processes.denominator(targets)
        if job.own:
            denominator = float(sum(int((one >= 0).sum()) for one in targets))
        total = 0.0
        for number, (inputs, target, weights) in enumerate(batches):
            last = number == len(batches) - 1
            part = processes.step_part(prepared, inputs, target, denominator, weights, last=last)
            assert part.losses.shape == target.shape
            total += float((part.losses * part.weights).sum())
            found["micro"] += 1
        found["losses"].append(processes.total(total))
        if "gradients" not in found:
            found["gradients"] = {name: whole_tensor(p.grad) for name, p in prepared.trained.tensors()}
        found["norms"].append(processes.clip([p for _, p in prepared.trained.tensors()], job.limit))
        prepared.optimiser.step()
        prepared.optimiser.zero_grad()
    found["after"] = processes.total(sum(float(look_at(processes, prepared, one).loss) for one in look))
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
            found = run(job, start(ParallelOptions(**{"cpu": True, **job.options})))
        except CtxforgeError as error:
            found = {"error": f"{type(error).__name__}: {error.cause} | {error.remedy}"}
        torch.save(found, out / f"{job.name}-{os.environ.get('RANK', '0')}.pt")
    processes = start(ParallelOptions(cpu=job.options.get("cpu", True)))
    processes.wait()
    processes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
