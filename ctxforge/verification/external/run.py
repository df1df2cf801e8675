"""Running lm-eval on a result and its source, on the same documents, through its Python API."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from ctxforge.errors import CheckpointError, UsageError
from ctxforge.verification.external.assemble import Answers, Asked, averages, report_traps, task_scores
from ctxforge.verification.external.budget import LeftOut
from ctxforge.verification.external.build import Job, build_jobs, quiet_lm_eval
from ctxforge.verification.external.guard import Tick, guarded
from ctxforge.verification.external.options import REFUSE, ExternalOptions
from ctxforge.verification.external.require import require_lm_eval
from ctxforge.verification.external.result import ExternalReport, TaskScore

Progress = Callable[[str, int, int], None]


def run_external(
    folder: Path,
    *,
    options: ExternalOptions,
    source: Path | None = None,
    model: Any = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> ExternalReport:
    """Score the checkpoint in `folder`, and the one it came from, on lm-eval's benchmarks.

    All tasks are built before a model is loaded, so that missing data stops at once. The two models are not in memory
    together unless the caller holds one. RULER at lengths that the source can't see is run on the result alone.

    Args:
        folder: of the result.
        options: what is run.
        source: folder of the source, or None.
        model: the result, where it is loaded already: a transformers causal LM on its device.
        tokenizer: of the result, likewise.
        progress: called with (what, requests done, of how many).

    Raises:
        ResourceError: lm-eval, a package or a data set is missing, or out of memory.
        UsageError: an unknown task, or a length or document that does not fit.
        CheckpointError: a folder can't be loaded.
    """
    version = require_lm_eval(options.tasks)
    from ctxforge.verification.load import load_model, load_tokenizer, pick_device, release
    from ctxforge.verification.settings import VerifySettings

    folder = Path(folder)
    settings = VerifySettings(dtype=options.dtype, device=options.device, trust_remote_code=options.trust_remote_code)
    device = pick_device(options.device) if model is None else str(model.device)
    tokenizer = load_tokenizer(folder, settings) if tokenizer is None else tokenizer
    if options.chat_template and not getattr(tokenizer, "chat_template", None):
        raise UsageError("the tokenizer has no chat template.", "Leave the chat template out.")
    limit = options.max_length or context_length(folder)
    source_limit = None if source is None else options.source_max_length or context_length(Path(source))
    limits = (limit,) if source_limit is None else (limit, source_limit)
    _demand_lengths(options, limit)
    jobs, not_run = build_jobs(options, folder, tokenizer, limits)

    held = model is not None
    model = model if held else load_model(folder, settings, device)
    mine, out = _ask(model, tokenizer, jobs, options, limit, "result", progress)
    if not held:
        del model
        release(device)
    theirs: dict[int, Answers] = {}
    if source is not None and source_limit is not None:
        able = [job for job in jobs if job.length is None or job.length <= source_limit]
        source_tokenizer = load_tokenizer(Path(source), settings)
        if options.chat_template and not getattr(source_tokenizer, "chat_template", None):
            # A template that came with the conversion: both are asked the same prompts.
            source_tokenizer.chat_template = tokenizer.chat_template
        other = load_model(Path(source), settings, device)
        theirs, more = _ask(other, source_tokenizer, able, options, source_limit, "source", progress)
        out = [*out, *more]
        del other
        release(device)
    scores: list[TaskScore] = []
    for job in jobs:
        asked = Asked(job.name, str(job.task.VERSION), job.length, job.asked)
        scores += task_scores(asked, mine[id(job)], theirs.get(id(job)))
    return ExternalReport(
        lm_eval=version,
        options=options,
        limit=limit,
        source_limit=source_limit,
        scores=tuple(scores),
        averages=tuple(averages(scores)),
        left_out=tuple(out),
        not_run=tuple(not_run),
        device=device,
        versions=_versions(),
        traps=report_traps(scores),
    )


def context_length(folder: Path) -> int:
    """Tokens that the checkpoint in `folder` is made for: `max_position_embeddings`.

    Raises:
        CheckpointError: the config can't be read or does not say.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "Give the folder of a checkpoint.") from error
    for part in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(part.get(key), int):
                return int(part[key])
    raise CheckpointError(f"{path} does not say how many tokens the model sees.", "Give `max_length`.")


def _demand_lengths(options: ExternalOptions, limit: int) -> None:
    beyond = [length for length in options.lengths if length > limit]
    if beyond:
        raise UsageError(
            f"RULER at {beyond[0]} tokens does not fit the result, which sees {limit}.",
            "Give lengths up to the target length of the conversion.",
        )


def _ask(
    model: Any,
    tokenizer: Any,
    jobs: list[Job],
    options: ExternalOptions,
    limit: int,
    label: str,
    progress: Progress | None,
) -> tuple[dict[int, Answers], list[LeftOut]]:
    """One model's answers by job, and the documents that did not fit it."""
    from ctxforge.verification.load import memory_errors
    from ctxforge.verification.settings import VerifySettings

    # Not simple_evaluate: it adds git's and the environment's description to every answer, and sets global seeds.
    evaluate = import_module("lm_eval").evaluate
    with quiet_lm_eval():
        guard = guarded(
            model, tokenizer, limit=limit, batch_size=options.batch_size, label=label, refuse=options.too_long == REFUSE
        )
    found: dict[int, Answers] = {}
    out: list[LeftOut] = []
    settings = VerifySettings(dtype=options.dtype)
    for job in jobs:
        what = f"{label}: {job.name}" + (f" at {job.length}" if job.length else "")
        guard.begin(job.length, _tick(progress, what))
        _set_examples(job.task, options)
        with quiet_lm_eval(), memory_errors(job.length or limit, settings):
            results = evaluate(
                guard,
                {"tasks": {job.name: job.task}},
                limit=options.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=options.chat_template,
                fewshot_as_multiturn=options.chat_template,
            )
        found[id(job)] = Answers(
            samples=results["samples"][job.name],
            left_out=frozenset(document for _, document in guard.left_out),
            longest=guard.longest.get(job.name, 0),
        )
        out += guard.left_out.values()
    return found, out


def _set_examples(task: Any, options: ExternalOptions) -> None:
    """Worked examples before a question as simple_evaluate sets them: a task that says 0 keeps 0."""
    asked = task.get_config("num_fewshot")
    if options.fewshot is not None and asked != 0:
        task.set_config(key="num_fewshot", value=options.fewshot)
    elif asked is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=options.seed)


def _tick(progress: Progress | None, what: str) -> Tick | None:
    if progress is None:
        return None
    out = sys.stdout

    def tick(done: int, total: int) -> None:
        # lm-eval's own prints go nowhere; the caller's do not.
        with contextlib.redirect_stdout(out):
            progress(what, done, total)

    return tick


def _versions() -> dict[str, str]:
    found = {}
    for name in ("lm_eval", "datasets", "transformers", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
