"""A batch file from its text to its end. Read this first.

file --> Contents (includes read) --> jobs (matrices multiplied, names given) --> Planned (headers read, keys) -->
Due (what an earlier run left) --> Runner (executor, journal) --> results
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ctxforge.batch import journal as journals
from ctxforge.batch.collisions import refuse_alike
from ctxforge.batch.executors import Executor, LocalExecutor
from ctxforge.batch.expanding import MANY, Job, chosen, count_jobs, expand
from ctxforge.batch.including import read_batch
from ctxforge.batch.journal import Journal, Record
from ctxforge.batch.outputs import identity
from ctxforge.batch.planning import CONVERT, Planned, Refused, plan_jobs
from ctxforge.batch.results import JobResult, described, worst
from ctxforge.batch.resuming import decide
from ctxforge.batch.running import Due, Runner, Said
from ctxforge.batch.sharing import SharedCopies
from ctxforge.batch.sources import Sources
from ctxforge.batch.task import Task
from ctxforge.batch.tree import wrong
from ctxforge.checkpoint import Checkpoint, check_output
from ctxforge.checkpoint.staging import writing
from ctxforge.errors import CtxforgeError, ExitCode, UsageError

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is run.

    Attributes:
        only: patterns of names; empty for all jobs.
        output: folder for outputs, in place of the file's.
        executor: where jobs run.
        jobs: how many at the same time; None for one on this machine, and as many as there are elsewhere.
        keep_going: go on after a job has failed, and leave out those that can't be planned.
        resume: go on with what an earlier run left.
        fresh: forget what an earlier run left.
        yes: agree to what would be asked.
        trust_remote_code: let jobs that say so run code inside checkpoints.
        cluster: of submitit, for tests: slurm, local or debug.
    """

    only: tuple[str, ...] = ()
    output: Path | None = None
    executor: Literal["local", "ray", "slurm"] = "local"
    jobs: int | None = None
    keep_going: bool = False
    resume: bool = False
    fresh: bool = False
    yes: bool = False
    trust_remote_code: bool = False
    cluster: str = "slurm"


@dataclass(frozen=True)
class Prepared:
    """A batch that is planned and not yet run.

    Attributes:
        jobs: those that can be run, in the order of the file.
        refused: those that can't.
        order: all their names, in the order of the file.
        output: folder for outputs.
        journal: file of the journal.
        stem: of the batch file's name.
        sources: opened while planning.
    """

    jobs: tuple[Planned, ...]
    refused: tuple[Refused, ...]
    order: tuple[str, ...]
    output: Path
    journal: Path
    stem: str
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True)
class BatchResult:
    """How a batch ended: the results in the order of the file, and the worst exit code."""

    results: tuple[JobResult, ...]
    exit_code: int
    interrupted: bool
    journal: Path


def prepare(path: Path, options: BatchOptions, told: Told | None = None) -> Prepared:
    """Read a batch file and plan its jobs; nothing is written.

    Args:
        path: the file.
        options: which jobs, and where to.
        told: called with (what, done, of how many).

    Raises:
        CtxforgeError: the file is wrong, or a job can't be planned and `keep_going` is off.
    """
    contents = read_batch(path)
    total = count_jobs(contents)
    if total > MANY and not options.yes:
        raise UsageError(f"{path} makes {total} jobs", "add --yes if that is meant, or name fewer in the matrix")
    jobs = chosen(expand(contents), options.only)
    for job in jobs:
        _refuse_remote_code(job, options.trust_remote_code)
    output = (options.output or Path(contents.output or ".")).expanduser().absolute()
    sources = Sources()
    say = told or (lambda _what, _done, _total: None)
    found = plan_jobs(
        jobs, sources, output, yes=options.yes, told=lambda done, all_jobs: say("planning", done, all_jobs)
    )
    planned = tuple(one for one in found if isinstance(one, Planned))
    refused = tuple(one for one in found if isinstance(one, Refused))
    if refused and not options.keep_going:
        first = refused[0].error
        others = f" (and {len(refused) - 1} more jobs can't be planned)" if len(refused) > 1 else ""
        raise type(first)(f"{first.cause}{others}", first.remedy)
    refuse_alike(planned)
    order = tuple(job.name for job in jobs)
    return Prepared(planned, refused, order, output, output / f"{path.stem}{journals.SUFFIX}", path.stem, sources)


def due_jobs(prepared: Prepared, records: dict[str, Record], *, resume: bool) -> list[Due]:
    """What is to be done of each job.

    Raises:
        CtxforgeError: an output is there and may not be replaced, or its place is no good.
    """
    found = []
    for planned in prepared.jobs:
        record = records.get(planned.name)
        due = Due(planned, decide(planned, (record or Record()) if resume else None))
        if CONVERT in due.decision.stages:
            _check_place(prepared, due)
        found.append(due)
    return found


def run(
    prepared: Prepared,
    options: BatchOptions,
    *,
    executor: Executor | None = None,
    told: Told | None = None,
    said: Said | None = None,
) -> BatchResult:
    """Run a batch.

    Args:
        prepared: what `prepare` gave.
        options: the same.
        executor: in place of the one that the options name.
        told: called with (what, done, of how many) while a job runs in this process.
        said: called with each result, how many there are, and of how many.

    Raises:
        CtxforgeError: an output can't be written, the journal is another run's, or one is there and neither `resume`
            nor `fresh` was chosen.
    """
    with Journal(prepared.journal, fresh=options.fresh) as journal:
        if journal.records and not options.resume:
            raise UsageError(
                f"an earlier run left the journal {journal.path}",
                "go on with it by --resume, or forget it by --fresh",
            )
        due = due_jobs(prepared, journal.records, resume=options.resume)
        with writing(prepared.output):
            prepared.output.mkdir(parents=True, exist_ok=True)
        shared = SharedCopies(prepared.output, prepared.stem)
        chosen_executor = executor or _executor(prepared, options, journal, told)
        try:
            runner = Runner(
                chosen_executor,
                journal,
                prepared.sources,
                shared,
                prepared.output / f"{prepared.stem}.reports",
                keep_going=options.keep_going,
                yes=options.yes,
                said=said,
            )
            results, interrupted = runner.run(due)
        finally:
            shared.close()
            chosen_executor.close()
    results |= {one.name: _refusal(one) for one in prepared.refused}
    ordered = tuple(results[name] for name in prepared.order)
    code = worst([result.exit_code for result in ordered] + ([ExitCode.INTERRUPTED] if interrupted else []))
    return BatchResult(ordered, code, interrupted, prepared.journal)


def _executor(prepared: Prepared, options: BatchOptions, journal: Journal, told: Told | None) -> Executor:
    if options.executor == "ray":
        from ctxforge.batch.executors.ray_cluster import RayExecutor

        return RayExecutor(options.jobs)
    logs = prepared.output / f"{prepared.stem}.logs"
    if options.executor == "slurm":
        from ctxforge.batch.executors.slurm import SlurmExecutor

        return SlurmExecutor(logs, options.jobs, options.cluster)
    recipes = {planned.name: planned.recipe for planned in prepared.jobs}

    def opened(task: Task) -> Checkpoint | None:
        return None if task.twin is not None else prepared.sources.ready(recipes[task.name])

    return LocalExecutor(options.jobs or 1, logs=logs, opened=opened, hold=(journal.descriptor,), told=told)


def _check_place(prepared: Prepared, due: Due) -> None:
    """Refuse an output before anything is run; folders below that of the outputs are made when their turn comes."""
    planned = due.planned
    below = planned.out.is_relative_to(prepared.output)
    if not planned.out.parent.is_dir() and below:
        return
    # What an earlier run may have finished is the task's to judge.
    unsure = identity(planned.out) != due.decision.before
    try:
        checkpoint = prepared.sources.open(planned.recipe).checkpoint
        check_output(checkpoint, planned.out, overwrite=due.decision.replace or unsure)
    except CtxforgeError as error:
        place = planned.job.node.at(["out"])
        raise type(error)(f"{place}: job {planned.name}: {error.cause}", error.remedy) from None


def _refuse_remote_code(job: Job, allowed: bool) -> None:
    for name in ("calibrate", "verify"):
        section = getattr(job.spec, name)
        if section is not None and section.trust_remote_code and not allowed:
            raise wrong(
                job.node.at([name, "trust_remote_code"]),
                f"job {job.name} turns on trust_remote_code, which lets a checkpoint run its own code",
                "read that code first, then type --trust-remote-code on the command line",
            )


def _refusal(one: Refused) -> JobResult:
    failure = described(one.error)
    return JobResult(one.name, "refused", failure.exit_code, failure=failure)


__all__: Sequence[str] = ["BatchOptions", "BatchResult", "Prepared", "due_jobs", "prepare", "run"]
