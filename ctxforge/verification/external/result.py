"""What a hand-over to lm-eval found: frozen values that `dataclasses.asdict` turns into JSON."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.verification.external.budget import LeftOut
from ctxforge.verification.external.options import ExternalOptions
from ctxforge.verification.statistics import Interval


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task, for RULER at one length.

    Attributes:
        benchmark: "ruler", "longbench" or "tasks".
        task: lm-eval's name.
        metric: lm-eval's name of the metric; for RULER the scorer.
        filter: lm-eval's name of the filter that read the answers.
        length: nominal context length in tokens, for RULER.
        asked: the length that the generator was asked for, which is shorter at a model's limit.
        version: of the task, as its file says.
        result: score over the result's documents; None where none fitted.
        source: score over the source's documents; None without a source, or where none fitted.
        difference: result minus source over the documents that both answered; None where there are none.
        documents: documents of the task that were to be run.
        left_out: those that do not fit the result.
        source_left_out: those that do not fit the source; None where the source was not run.
        paired: documents behind the difference.
        longest: most tokens that the result was given to see, generated ones included.
        traps: what has to be known to read the score.
    """

    benchmark: str
    task: str
    metric: str
    filter: str
    length: int | None
    asked: int | None
    version: str
    result: Interval | None
    source: Interval | None
    difference: Interval | None
    documents: int
    left_out: int
    source_left_out: int | None
    paired: int
    longest: int
    traps: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What was left out, in words; empty where nothing was."""
        parts = []
        if self.left_out:
            parts.append(f"left out: {self.left_out} of {self.documents}, too long for the result")
        if self.source_left_out:
            parts.append(f"left out: {self.source_left_out} of {self.documents}, too long for the source")
        return "; ".join(parts)


@dataclass(frozen=True)
class Average:
    """Unweighted mean over the tasks of a benchmark at one length, as papers report it; no interval.

    Attributes:
        benchmark: "ruler" or "longbench".
        length: nominal length in tokens; None for LongBench.
        tasks: tasks behind the mean.
        of: tasks that the benchmark has; fewer tasks make another number than the published one.
        result: mean of the result's scores, 0 to 1.
        source: mean of the source's; None where it lacks one of the tasks.
    """

    benchmark: str
    length: int | None
    tasks: int
    of: int
    result: float
    source: float | None


@dataclass(frozen=True)
class NotRun:
    """A task that was not run, and why. `length` is the nominal one, for RULER."""

    task: str
    length: int | None
    reason: str


@dataclass(frozen=True)
class ExternalReport:
    """Everything that lm-eval was asked and answered.

    Attributes:
        lm_eval: its version.
        options: what was chosen.
        limit: tokens that the result may see at once.
        source_limit: the same for the source; None without one.
        scores: by task, length and metric.
        averages: over the tasks of a benchmark.
        left_out: every document that did not fit.
        not_run: tasks that were not run.
        device: torch device.
        versions: of the packages that shape scores.
        traps: what holds for the whole report.
    """

    lm_eval: str
    options: ExternalOptions
    limit: int
    source_limit: int | None
    scores: tuple[TaskScore, ...]
    averages: tuple[Average, ...]
    left_out: tuple[LeftOut, ...]
    not_run: tuple[NotRun, ...]
    device: str
    versions: dict[str, str]
    traps: tuple[str, ...] = ()
