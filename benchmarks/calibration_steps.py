"""Training steps of ctxforge, transformers' Trainer and TRL's SFTTrainer, each in a process of its own.

What `calibration_pose.py` and `calibration_lora.py` have in common. A side gets a `Job` as JSON, takes its steps and
gives a `Report`: losses, processor and wall seconds of each step, resident memory once loaded and at its highest. The
adapters have the same initial values on every side, so that all losses can be compared, not the first alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

OURS, TRAINER, TRL = "ctxforge", "Trainer + peft", "TRL SFTTrainer"
RANK, ALPHA, RATE, CLIP, SEED = 32, 32.0, 1e-4, 1.0, 0
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
TRL_FOLDER = "CTXFORGE_BENCHMARK_TRL"
LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Job:
    """What a side has to do.

    Attributes:
        side: OURS, TRAINER or TRL.
        data: an .npz of `ids` [rows, L], and of `positions` and `weights` [rows, L] where rows have places of their
            own (ours only).
        batch: rows of a step; the file's rows are taken in order.
        checkpoint: "no"; "yes", each layer's input alone is kept; "attention", and attention's output (ours only).
        tile: tokens of a tile of an MLP (ours only); None for no tiles.
        slice_rows: rows of a slice of the loss (ours only).
        stretch: factor of linear position interpolation, 1 for the model as it is.
        held_out: an .npz of `ids` [rows, L] to measure the mean NLL on after the steps; None for no measuring.
    """

    side: str
    data: str
    batch: int = 1
    checkpoint: str = "no"
    tile: int | None = None
    slice_rows: int | None = None
    stretch: float = 1.0
    held_out: str | None = None


@dataclass(frozen=True)
class Report:
    """What it took.

    Attributes:
        losses: mean loss of each step in nats a token.
        seconds, processor: of each step, data loading, optimiser and clipping included.
        loaded_mb, peak_mb: resident memory with the model and its adapter in place, and the highest there was.
        nll: held-out NLL, where it was asked for.
    """

    losses: list[float]
    seconds: list[float]
    processor: list[float]
    loaded_mb: float
    peak_mb: float
    nll: float | None


class Clock:
    """Marks the end of steps; the time before the first mark after `start` is the first step's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []
        self.loaded_mb = 0.0

    def start(self) -> None:
        self.loaded_mb = resident("VmRSS")
        self._last = time.perf_counter(), time.process_time()

    def step(self, loss: float) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds.append(now[0] - self._last[0])
        self.processor.append(now[1] - self._last[1])
        self.losses.append(loss)
        self._last = now


def resident(name: str) -> float:
    """MB of this process, from /proc: VmRSS now, VmHWM at most. (ru_maxrss would begin with the parent's.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def load_model(job: Job, folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if job.stretch != 1.0:
        config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": job.stretch}
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True)


def layouts(job: Job) -> list[Any]:
    """The rows as ctxforge's own."""
    import numpy as np

    from ctxforge.calibrate.placement import Layout, full_length

    with np.load(job.data) as data:
        plain = [full_length(ids) for ids in data["ids"]]
        if "positions" not in data:
            return plain
        return [
            Layout(row.ids, where, row.documents, weights, row.extended)
            for row, where, weights in zip(plain, data["positions"], data["weights"], strict=True)
        ]


def ours(job: Job, folder: Path, clock: Clock) -> Any:
    """The steps with ctxforge's pieces: what a calibration does for each batch, and nothing else. Gives the model."""
    import torch

    from ctxforge.calibrate.adapters import AdapterRecipe, attach
    from ctxforge.calibrate.memory.checkpointing import Checkpointing
    from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs
    from ctxforge.calibrate.objectives.loss_model import LossModel
    from ctxforge.calibrate.placement import collate, model_inputs, next_tokens
    from ctxforge.checkpoint import read_checkpoint

    model = load_model(job, folder)
    trained = attach(model, read_checkpoint(folder), AdapterRecipe(rank=RANK, alpha=ALPHA), seed=SEED)
    parameters = [parameter for _, parameter in trained.tensors()]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    model.train()
    if job.tile:
        TiledMLPs(model, job.tile)
    if job.checkpoint != "no":
        Checkpointing(model, keep_attention=job.checkpoint == "attention")
    loss_model = LossModel(model, job.slice_rows)
    rows = layouts(job)
    clock.start()
    for first in range(0, len(rows), job.batch):
        batch = collate(rows[first : first + job.batch])
        inputs = model_inputs(batch, model)
        targets, _ = next_tokens(batch)
        found = loss_model(inputs.pop("input_ids"), torch.tensor(targets), float((targets != -100).sum()), **inputs)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.step(float(found.loss.detach()))
    return model


class Rows:
    """The rows as Trainer takes them: the first token, which nothing predicts, has no label."""

    def __init__(self, job: Job) -> None:
        import numpy as np

        self.ids = np.load(job.data)["ids"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, Any]:
        ids = self.ids[at].tolist()
        return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def peers(job: Job, folder: Path, clock: Clock) -> Any:
    """The steps with transformers' Trainer or TRL's SFTTrainer as their users write them. Gives the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    model = load_model(job, folder)
    # The same draws as `attach`: the modules come in the same order.
    torch.manual_seed(SEED)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    )
    rows: Any = Rows(job)
    options: dict[str, Any] = {
        "per_device_train_batch_size": job.batch,
        "max_steps": len(rows) // job.batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "activation_checkpointing": job.checkpoint != "no",
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    found: list[float] = []

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_args: Any, **_named: Any) -> None:
            clock.start()

        def on_step_end(self, *_args: Any, **_named: Any) -> None:
            clock.step(found[-1])

    base: Any = Trainer
    extra: dict[str, Any] = {"data_collator": default_data_collator}
    arguments: Any = TrainingArguments
    if job.side == TRL:
        import pyarrow
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        base, arguments = SFTTrainer, SFTConfig
        options |= {"max_length": len(rows[0]["input_ids"]), "dataset_kwargs": {"skip_prepare_dataset": True}}
        extra = {"processing_class": AutoTokenizer.from_pretrained(folder, local_files_only=True)}
        # A fingerprint of its own: datasets 5.2 cannot pickle pyarrow 26's tables for one.
        rows = Dataset(pyarrow.Table.from_pylist([rows[at] for at in range(len(rows))]), fingerprint="rows")

    class Watched(base):  # type: ignore[misc]
        def training_step(self, *args: Any, **named: Any) -> Any:
            loss = super().training_step(*args, **named)
            found.append(float(loss))
            return loss

    with tempfile.TemporaryDirectory() as work:
        trainer = Watched(
            model=model,
            args=arguments(output_dir=work, **options),
            train_dataset=rows,
            callbacks=[Marks()],
            **extra,
        )
        trainer.train()
    return model


def held_out_nll(model: Any, file: str) -> float:
    """Mean NLL of the rows of a file, in nats a token, each row a text of its own; a head a slice at a time."""
    import numpy as np
    import torch

    from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens

    total, count = 0.0, 0
    training = model.training
    model.eval()
    with torch.no_grad():
        for row in np.load(file)["ids"]:
            ids = torch.tensor(row)[None]
            total += float(LossModel(model)(ids, next_tokens(ids), 1.0).losses.double().sum())
            count += ids.shape[1] - 1
    model.train(training)
    return total / count


def child(text: str, folder: str) -> None:
    """Do a job, print the report as the last line."""
    import logging

    job, clock = Job(**json.loads(text)), Clock()
    if TRL_FOLDER in os.environ:
        sys.path.insert(0, os.environ[TRL_FOLDER])
    # What the peers say about their own options is not this benchmark's.
    logging.disable(logging.WARNING)
    model = (ours if job.side == OURS else peers)(job, Path(folder), clock)
    peak = resident("VmHWM")
    nll = held_out_nll(model, job.held_out) if job.held_out else None
    report = Report(clock.losses, clock.seconds, clock.processor, clock.loaded_mb, peak, nll)
    print("\n" + json.dumps(asdict(report)))


def measure(job: Job, folder: Path, timeout: float, trl: Path | None = None) -> Report:
    """One side in a fresh process; a failure ends the benchmark with what it said."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    if job.side == TRL and trl is not None:
        env[TRL_FOLDER] = str(trl)
    command = [sys.executable, __file__, json.dumps(asdict(job)), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"{job.side} failed:\n{done.stderr[-3000:]}")
    return Report(**json.loads(done.stdout.splitlines()[-1]))


def has_trl(trl: Path | None) -> bool:
    """Whether a process of ours can import TRL and what it needs."""
    start = f"import sys; sys.path.insert(0, {str(trl)!r}); " if trl else ""
    command = [sys.executable, "-c", start + "from trl import SFTTrainer"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def middle(values: list[float], warm_up: int = 1) -> float:
    """Median without the steps that warm up."""
    return statistics.median(values[warm_up:] or values)


def disagreement(reports: list[Report]) -> float:
    """Largest difference of any step's loss between any two sides."""
    return max(max(losses) - min(losses) for losses in zip(*(one.losses for one in reports), strict=True))


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function's result from a process of its own, so that torch and tokenizers never come into this one."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def emma_ids(count: int) -> Any:
    """The folder of SmolLM2 and the first `count` tokens of Emma, int64 [count]."""
    import numpy as np
    from transformers import AutoTokenizer

    from tests import assets

    folder = assets.smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(assets.emma_text(), verbose=False)["input_ids"]
    if len(ids) < count:
        raise SystemExit(f"the text has {len(ids)} tokens, {count} are needed")
    return folder, np.array(ids[:count])


def steps_of(reports: dict[str, Report]) -> Iterator[tuple[str, float, float, float, float]]:
    """Name, seconds, processor seconds, MB loaded and at most, of each."""
    for name, one in reports.items():
        yield name, middle(one.seconds), middle(one.processor), one.loaded_mb, one.peak_mb


if __name__ == "__main__":
    child(*sys.argv[1:3])
