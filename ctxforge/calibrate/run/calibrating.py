"""A whole calibration: data, reference, model, training, merge, and the result measured as it was written."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ctxforge.calibrate.adapters import read_adapter, weights_digest
from ctxforge.calibrate.data import plan_batch
from ctxforge.calibrate.held_out import HeldOut, HeldOutResult, HeldOutSettings, Reference, held_out, measure
from ctxforge.calibrate.memory.estimate import MemoryEstimate, StepOptions
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.objectives.restoration import Teacher
from ctxforge.calibrate.parallel import Processes, start
from ctxforge.calibrate.run import model as models
from ctxforge.calibrate.run.finish import finish
from ctxforge.calibrate.run.fitting import tokens_at_once
from ctxforge.calibrate.run.foreseen import beside_bytes, fit_beside
from ctxforge.calibrate.run.log import RunLog
from ctxforge.calibrate.run.loop import Loop, Progress, train
from ctxforge.calibrate.run.optimiser import make_optimiser
from ctxforge.calibrate.run.reference import known_reference, measure_reference
from ctxforge.calibrate.run.request import Calibrated, Request, Trained
from ctxforge.calibrate.run.restoring import load_teacher, notes_of, restores
from ctxforge.calibrate.run.sharing import check_shares, from_main, least_memory
from ctxforge.calibrate.run.sources import RunData, mix, open_data
from ctxforge.calibrate.run.state import BEST, STATE, RunState, load_state, read_state, recover, require_same
from ctxforge.calibrate.run.step import Training
from ctxforge.checkpoint import Checkpoint, check_output, read_checkpoint
from ctxforge.checkpoint.staging import locked, writing
from ctxforge.errors import CheckpointError
from ctxforge.verification.load import load_tokenizer, memory_errors, release
from ctxforge.verification.processes import launched
from ctxforge.verification.settings import VerifySettings

LOG = "log.jsonl"
_MOST_UNSAVED = 50


def calibrate(request: Request, progress: Progress) -> Calibrated | None:
    """Run a calibration, or go on with one that was interrupted; None in all processes but the first.

    Args:
        request: see there.
        progress: called with (words, done, of how many).

    Raises:
        CtxforgeError: bad input, no memory, no space, an interrupted run; see the parts.
    """
    check_output(request.checkpoint, request.out, overwrite=request.overwrite)
    check_shares(request.plan, request.parallel, launched())
    restores(request)  # refused where it can't be, before processes meet
    processes = start(request.parallel, model_config=_config(request))
    told: Progress = progress if processes.is_main else _silent
    with ExitStack() as held:
        held.callback(processes.close)

        def begin() -> None:
            with writing(request.work.parent):
                request.work.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(request.work))
            with writing(request.work.parent):
                request.work.mkdir(exist_ok=True)
            # A run that was refused leaves no empty folder behind, and takes none away from the run that holds it.
            held.callback(_remove_if_empty, request.work)

        processes.on_main(begin)
        trained = _train(request, processes, told)
        # The model of the training is gone here: merged weights are measured in its place.
        release(str(processes.device))
        return _finish(request, processes, trained, told) if processes.is_main else None


def _train(request: Request, processes: Processes, progress: Progress) -> Trained:
    plan = request.plan
    tokenizer = load_tokenizer(_root(request.checkpoint), _settings(request))
    data = open_data(
        request.data,
        tokenizer,
        held_out_share=plan.recipe.held_out.share,
        guard_texts=request.guard_texts,
        root=request.token_root,
        progress=progress,
    )
    mixture, windows = mix(plan, data), _windows(request, data)
    digest, identity = from_main(processes, lambda: _identity(request, data))
    state = _earlier(request, processes, identity)
    against = identity["base checkpoint" if request.source is None else "source"]
    compared = known_reference(request.work, windows, against)
    if compared is None and request.source is not None:
        progress("measuring the source", 0, 1)
        compared = _source_reference(request, processes, windows, against)
    with ExitStack() as held:
        held.enter_context(memory_errors(plan.longest, _settings(request), device=str(processes.device)))
        teacher, notes = load_teacher(request, processes.device), notes_of(request)
        # Layers are moved to their devices one by one where no device holds them all.
        home = torch.device("cpu") if request.parallel.shard and processes.world > 1 else processes.device
        model = models.load(request.checkpoint, request.load, home)
        loss_model, trained = models.make_trainable(model, request.checkpoint, plan, digest)
        if compared is None:
            name = "the checkpoint before the first step"
            compared = measure_reference(request.work, processes, windows, against, loss_model, name)
        if teacher is not None:
            teacher.check(model)
        options, estimate = _fit(request, processes, loss_model, teacher)
        hooks = models.hooks(model, plan, models.tables_of(request.record), held)
        loss_model.train()
        models.try_out(model, plan, mixture.caches, plan_batch(mixture, plan.seed, 0))
        models.apply_memory(model, options)
        prepared = processes.prepare(loss_model, trained, lambda groups: make_optimiser(plan, groups))
        if state is not None:
            load_state(request.work, processes, prepared)
        log = RunLog(
            request.work / LOG if processes.is_main else None,
            None if request.parallel.tracker is None else processes.accelerator,
        )
        log.rewind(-1 if state is None else state.step)
        if state is None:
            about = {"plan": plan.document(), "identity": identity, "options": asdict(options)}
            log.write("start", 0, {**about, "restoration": teacher is not None, "notes": list(notes)})
        if request.parallel.tracker is not None:
            processes.accelerator.init_trackers("ctxforge", config={"recipe": plan.recipe.name, "seed": plan.seed})
        training = Training(
            plan,
            mixture,
            processes,
            prepared,
            tokens_at_once(plan.recipe.memory, processes.device),
            hooks.choose_rotation,
            hooks.set_scale_base,
            teacher,
        )
        save_every = request.save_every or max(1, min(_MOST_UNSAVED, plan.recipe.steps // 10))
        found = train(
            Loop(training, windows, compared, request.work, identity, log, save_every, hooks.at_rest, progress), state
        )
        log.write("end", found.step, {"ended": found.ended, "best_step": found.chooser.best_step})
        return Trained(found, data, windows, compared, options, estimate, trained.count, identity, notes)


def _fit(
    request: Request, processes: Processes, loss_model: LossModel, teacher: Teacher | None
) -> tuple[StepOptions, MemoryEstimate]:
    """`fit`, beside the source where it is kept."""
    beside = 0 if teacher is None else beside_bytes(teacher, request, processes.device)
    return fit_beside(
        loss_model.model,
        request,
        processes.device,
        least_memory(processes),
        beside,
        processes=processes.world,
        slice_rows=loss_model.slice_rows,
    )


def _finish(request: Request, processes: Processes, trained: Trained, progress: Progress) -> Calibrated:
    chooser = trained.trainings.chooser
    if chooser.best is None:
        raise CheckpointError(
            "no measurement of the run gave finite losses, so there is nothing to keep",
            "lower optimiser.learning_rate, and start with --fresh",
        )
    kept = read_adapter(request.work / BEST).notes.get("step")
    if kept != chooser.best_step:
        raise CheckpointError(
            f"{request.work / BEST} holds step {kept}, and step {chooser.best_step} was the best",
            "start anew with --fresh",
        )
    calibration = {
        "recipe": request.plan.recipe.name,
        "plan": request.plan.document(),
        "seed": request.plan.seed,
        "steps": trained.trainings.step,
        "best_step": chooser.best_step,
        "ended": trained.trainings.ended,
        "tokens": trained.trainings.tokens,
        "data": trained.data.document(),
        "held_out": {
            **trained.windows.document(),
            "best": chooser.best.document(),
            "scores": chooser.document()["scores"],
        },
        "notes": list(trained.notes),
        "identity": dict(trained.identity),
        "versions": {"torch": torch.__version__},
    }
    merged = finish(
        request.checkpoint,
        request.work / BEST,
        request.out,
        record=request.record,
        calibration=calibration,
        overwrite=request.overwrite,
        link=request.link,
        progress=lambda done, total: progress("merging", done, total),
    )
    progress("measuring what was written", 0, 1)
    written = _written(request, processes, trained)
    for name in (STATE, BEST):
        shutil.rmtree(request.work / name, ignore_errors=True)
    return Calibrated(request.out, request.plan, trained, merged, written, request.work / LOG)


def _written(request: Request, processes: Processes, trained: Trained) -> HeldOutResult:
    """The finished checkpoint, loaded anew, on the held-out windows."""
    model = models.load(read_checkpoint(str(request.out)), request.load, processes.device)
    return measure(LossModel(model), trained.windows, trained.reference)


def _windows(request: Request, data: RunData) -> HeldOut:
    plan = request.plan
    recipe = plan.recipe.held_out
    parts = data.parts.held_out if recipe.share else data.parts.train
    return held_out(
        parts,
        HeldOutSettings(
            plan.trained_length, plan.target_length, windows=recipe.windows, short_windows=recipe.short_windows
        ),
    )


def _identity(request: Request, data: RunData) -> tuple[str, dict[str, str]]:
    """The digest of the base's weights, and what a run has in common with its state, by the names of messages."""
    digest = weights_digest(request.checkpoint)
    recipe = replace(request.plan, seed=0).digest
    identity = {"recipe": recipe, "seed": str(request.plan.seed), "data": data.digest}
    identity["base checkpoint"] = _digest(request.checkpoint, digest)
    # Scores are held against it: those of one run need the same one.
    identity["source"] = "none" if request.source is None else _digest(request.source, weights_digest(request.source))
    return digest, identity


def _digest(checkpoint: Checkpoint, weights: str) -> str:
    return hashlib.sha256(f"{weights}\n{checkpoint.config_text}".encode()).hexdigest()


def _earlier(request: Request, processes: Processes, identity: dict[str, str]) -> RunState | None:
    """The state to go on from."""

    def tidy() -> None:
        recover(request.work)
        if request.fresh:
            for name in (STATE, BEST):
                shutil.rmtree(request.work / name, ignore_errors=True)

    processes.on_main(tidy)
    state = read_state(request.work)
    if state is not None:
        require_same(state, identity, request.work)
    return state


def _source_reference(request: Request, processes: Processes, windows: HeldOut, against: str) -> Reference:
    assert request.source is not None
    with memory_errors(windows.settings.trained_length, _settings(request), device=str(processes.device)):
        model = models.load(request.source, request.load, processes.device)
        name = request.source_name or "the source"
        return measure_reference(request.work, processes, windows, against, model, name)


def _settings(request: Request) -> VerifySettings:
    return VerifySettings(dtype="float32", trust_remote_code=request.load.trust_remote_code)


def _config(request: Request) -> Any:
    """transformers' config of the model, where processes will share a sequence."""
    if request.parallel.context == 1:
        return None
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        _root(request.checkpoint), trust_remote_code=request.load.trust_remote_code, local_files_only=True
    )


def _root(checkpoint: Checkpoint) -> Path:
    assert checkpoint.root is not None
    return Path(checkpoint.root)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _silent(_words: str, _done: int, _total: int) -> None:
    """Processes other than the first don't speak."""
