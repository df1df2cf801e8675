"""The loop: which job starts when, what the journal is told, and what is done when one fails or the user interrupts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.batch.executors import Executor, Handle
from ctxforge.batch.journal import Journal
from ctxforge.batch.planning import CONVERT, Planned
from ctxforge.batch.results import JobResult, TaskResult, described, of_stages
from ctxforge.batch.resuming import Decision
from ctxforge.batch.sharing import SharedCopies
from ctxforge.batch.sources import Sources
from ctxforge.batch.task import Task
from ctxforge.errors import CtxforgeError, ExitCode

_POLL = 5.0

Said = Callable[[JobResult, int, int], None]


@dataclass(frozen=True)
class Due:
    """A job, and what is to be done of it."""

    planned: Planned
    decision: Decision


class Runner:
    """Runs jobs to their ends.

    Args:
        executor: where.
        journal: is told of every start and end before anything goes on.
        sources, shared: of the batch.
        reports: folder for the reports of verifications.
        keep_going: start further jobs after one has failed.
        yes: what the user agreed to.
        said: called with each result, how many there are, and of how many.
    """

    def __init__(
        self,
        executor: Executor,
        journal: Journal,
        sources: Sources,
        shared: SharedCopies,
        reports: Path,
        *,
        keep_going: bool = False,
        yes: bool = False,
        said: Said | None = None,
    ) -> None:
        self._executor = executor
        self._journal = journal
        self._sources = sources
        self._shared = shared
        self._reports = reports
        self._keep_going = keep_going
        self._yes = yes
        self._said = said or (lambda _result, _done, _total: None)
        self._results: dict[str, JobResult] = {}
        self._running: dict[int, tuple[Handle, Due]] = {}
        self._starting: Due | None = None
        self._finished: dict[str, str] = {}  # outputs by the key of the work that is in them
        self._total = 0

    def run(self, jobs: Sequence[Due]) -> tuple[dict[str, JobResult], bool]:
        """Run the jobs.

        Returns:
            The results by name, in no order, and whether the user interrupted.
        """
        self._total = len(jobs)
        pending = []
        for due in jobs:
            if due.decision.stages:
                pending.append(due)
            else:
                stages = due.decision.kept
                self._end(due, JobResult(due.planned.name, "skipped", of_stages(stages), _out(due.planned), stages))
            if CONVERT in due.decision.kept:
                self._finished.setdefault(due.planned.work, str(due.planned.out))
        self._shared.expect([due.planned for due in pending if CONVERT in due.decision.stages])
        interrupted = False
        try:
            self._loop(pending)
        except KeyboardInterrupt:
            interrupted = True
            self._interrupt()
        for due in jobs:
            if due.planned.name not in self._results:
                name, out = due.planned.name, _out(due.planned)
                self._results[name] = JobResult(name, "not run", ExitCode.OK, out, due.decision.kept)
        return self._results, interrupted

    def _loop(self, pending: list[Due]) -> None:
        while pending or self._running:
            while due := self._next(pending):
                pending.remove(due)
                self._start(due)
            if not self._running:
                break
            handles = [handle for handle, _ in self._running.values()]
            for handle in self._executor.wait(handles, _POLL):
                _, due = self._running[id(handle)]
                self._take(due, handle.result())
                del self._running[id(handle)]

    def _next(self, pending: Sequence[Due]) -> Due | None:
        """The first job that can start now."""
        if self._failed and not self._keep_going:
            return None
        running = [due for _, due in self._running.values()]
        at_work = {due.planned.work for due in running if CONVERT in due.decision.stages}
        for due in pending:
            if due.planned.work in at_work and CONVERT in due.decision.stages:
                continue  # its twin is being made
            try:
                free = self._executor.resources(
                    due.planned.job.spec.resources, [one.planned.job.spec.resources for one in running]
                )
            except CtxforgeError:
                return due  # `_start` asks again, and tells why
            if free:
                return due
        return None

    @property
    def _failed(self) -> bool:
        return any(result.status == "failed" for result in self._results.values())

    def _start(self, due: Due) -> None:
        planned, decision = due.planned, due.decision
        self._starting = due
        self._journal.append(
            {
                "event": "start",
                "job": planned.name,
                "key": planned.key,
                "out": str(planned.out),
                "before": decision.before,
                "replace": decision.replace,
            }
        )
        try:
            self._executor.resources(planned.job.spec.resources, ())
            task = self._task(due)
            handle = self._executor.submit(task)
        except Exception as error:
            self._take(due, TaskResult("failed", failure=described(error)))
        else:
            self._running[id(handle)] = (handle, due)
        self._starting = None

    def _task(self, due: Due) -> Task:
        """The job as the executor gets it, its source fetched and copied first where several jobs share it."""
        planned, decision = due.planned, due.decision
        shared = twin = None
        if CONVERT in decision.stages:
            twin = self._finished.get(planned.work)
            twin = None if twin == str(planned.out) else twin
            if twin is None and self._shared.wanted(planned):
                shared = self._shared.copy_of(planned, self._sources.ready(planned.recipe))
            elif twin is None and not self._executor.elsewhere:
                self._sources.ready(planned.recipe)
        return Task(
            name=planned.name,
            spec=planned.job.spec,
            out=str(planned.out),
            stages=decision.stages,
            revision=planned.revision,
            shared=None if shared is None else str(shared),
            twin=twin,
            before=decision.before,
            replace=decision.replace,
            light=planned.light,
            written=planned.written,
            reports=str(self._reports),
            folder=str(Path.cwd()),
            yes=self._yes,
        )

    def _take(self, due: Due, ended: TaskResult) -> None:
        """Write down how a task ended."""
        planned, decision = due.planned, due.decision
        events: list[dict[str, Any]] = []
        stages = {**decision.kept}
        for name, found in ended.stages.items():
            stages[name] = {**found, "key": planned.keys[name], "out": str(planned.out)}
            events.append({"event": "stage", "job": planned.name, "stage": name, **stages[name]})
        code = of_stages(stages)
        status = ended.status
        if ended.failure is not None:
            code = ended.failure.exit_code
        elif status == "interrupted":
            code = ExitCode.INTERRUPTED
        elif code != ExitCode.OK:
            status = "failed"
        if CONVERT in ended.stages:
            self._finished.setdefault(planned.work, str(planned.out))
        result = JobResult(planned.name, status, code, _out(planned), stages, ended.seconds, ended.failure)
        end = {
            "event": "end",
            "job": planned.name,
            "status": status,
            "exit_code": int(code),
            "seconds": round(ended.seconds, 3),
            "error": None if ended.failure is None else vars(ended.failure),
        }
        self._journal.append(*events, end)
        self._end(due, result)

    def _end(self, due: Due, result: JobResult) -> None:
        self._results[due.planned.name] = result
        self._said(result, len(self._results), self._total)

    def _interrupt(self) -> None:
        """End what runs, and write down what became of it."""
        running = list(self._running.values())
        self._executor.cancel([handle for handle, _ in running])
        for handle, due in running:
            if due.planned.name not in self._results:
                self._take(due, handle.result())
        if self._starting is not None and self._starting.planned.name not in self._results:
            self._take(self._starting, TaskResult("interrupted"))


def _out(planned: Planned) -> str | None:
    return str(planned.out) if planned.written else None
