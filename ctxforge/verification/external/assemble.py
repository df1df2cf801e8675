"""From lm-eval's samples to scores: one value a document, paired by task and document number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import InternalError
from ctxforge.verification.external.options import BENCHMARKS
from ctxforge.verification.external.result import Average, TaskScore
from ctxforge.verification.external.ruler_tasks import CWE_TRAP, LONGBENCH_TRAPS, QA_TRAP, RULER, RULER_TRAPS
from ctxforge.verification.statistics import Interval, paired_bootstrap, wilson, wilson_limits

Sample = Mapping[str, Any]
SAME = "Wilson's limits of both scores, as if independent: every document came out alike"
NO_SPREAD = "no interval: every document came out alike"
_LONGBENCH_TASKS = 21


@dataclass(frozen=True)
class Answers:
    """What one model answered to one task.

    Attributes:
        samples: as lm-eval logs them, one a document and filter, each with a value by metric.
        left_out: numbers of the documents that were not run; their samples hold placeholders.
        longest: most tokens that the model was given to see.
    """

    samples: Sequence[Sample]
    left_out: frozenset[int] = frozenset()
    longest: int = 0


@dataclass(frozen=True)
class Asked:
    """The task that was asked: see `TaskScore` for the fields."""

    task: str
    version: str = ""
    length: int | None = None
    asked: int | None = None

    @property
    def benchmark(self) -> str:
        """ "ruler", "longbench" or "tasks"."""
        if self.task in RULER:
            return "ruler"
        return "longbench" if self.task.startswith("longbench") else "tasks"


def task_scores(asked: Asked, result: Answers, source: Answers | None) -> list[TaskScore]:
    """One score a metric and filter.

    Raises:
        InternalError: result and source were not asked the same documents.
    """
    if source is not None:
        _demand_same_documents(asked.task, result, source)
    documents = len({int(sample["doc_id"]) for sample in result.samples})
    found = []
    for metric, name in metrics_of(asked, result.samples).items():
        for key in sorted({str(sample["filter"]) for sample in result.samples}):
            mine = values_of(result, metric, key)
            theirs = None if source is None else values_of(source, metric, key)
            paired = sorted(mine.keys() & theirs.keys()) if theirs is not None else []
            found.append(
                TaskScore(
                    benchmark=asked.benchmark,
                    task=asked.task,
                    metric=name,
                    filter=key,
                    length=asked.length,
                    asked=asked.asked,
                    version=asked.version,
                    result=score(list(mine.values())),
                    source=None if theirs is None else score(list(theirs.values())),
                    difference=None
                    if theirs is None
                    else difference([mine[n] for n in paired], [theirs[n] for n in paired]),
                    documents=documents,
                    left_out=len(result.left_out),
                    source_left_out=None if source is None else len(source.left_out),
                    paired=len(paired),
                    longest=result.longest,
                    traps=task_traps(asked),
                )
            )
    return found


def metrics_of(asked: Asked, samples: Sequence[Sample]) -> dict[str, str]:
    """The metrics worth reporting, from lm-eval's name in a sample to the name in the report.

    RULER's metric is the length asked for, beside a placeholder for 4096; LongBench's tasks repeat theirs as `score`.
    Metrics that are no number a document (perplexities, confusion counts) are left out.
    """
    if not samples:
        return {}
    if asked.benchmark == "ruler":
        return {str(asked.asked): RULER[asked.task].scorer}
    names = [str(name) for name in samples[0]["metrics"]]
    if "score" in names and asked.benchmark == "longbench":
        names = ["score"]
    return {name: name for name in names if all(_number(sample.get(name)) for sample in samples)}


def values_of(answers: Answers, metric: str, filter_key: str) -> dict[int, float]:
    """Value by document number, without the documents that were left out."""
    return {
        int(sample["doc_id"]): float(sample[metric])
        for sample in answers.samples
        if str(sample["filter"]) == filter_key and int(sample["doc_id"]) not in answers.left_out
    }


def score(values: Sequence[float]) -> Interval | None:
    """The mean with Wilson's interval where every value is 0 or 1, else with the bootstrap's; None without values."""
    if not values:
        return None
    if _binary(values):
        return wilson(int(sum(values)), len(values))
    return paired_bootstrap(values)[0]


def difference(result: Sequence[float], source: Sequence[float]) -> Interval | None:
    """Mean of result minus source over the same documents, with a paired bootstrap interval; None without documents.

    Where every document gives the same difference the bootstrap has nothing to draw from and its interval would be a
    point. For right-or-wrong answers the limits are then combined from Wilson's of either score (MOVER, Zou and Donner
    2008, without the correlation, which is on the safe side); for graded ones there is none.
    """
    if not result:
        return None
    apart = [mine - theirs for mine, theirs in zip(result, source, strict=True)]
    found = paired_bootstrap(apart)[0]
    if found.bounds is None or max(apart) > min(apart):
        return found
    if not (_binary(result) and _binary(source)):
        return Interval(found.value, None, None, found.units, NO_SPREAD)
    trials = len(result)
    p, q = math.fsum(result) / trials, math.fsum(source) / trials
    low, high = wilson_limits(p, trials)
    source_low, source_high = wilson_limits(q, trials)
    return Interval(
        p - q, p - q - math.hypot(p - low, source_high - q), p - q + math.hypot(high - p, q - source_low), trials, SAME
    )


def averages(scores: Iterable[TaskScore]) -> list[Average]:
    """Means over the tasks of RULER at each length, and of LongBench, over what was measured."""
    groups: dict[tuple[str, int | None], dict[str, TaskScore]] = {}
    for each in scores:
        if each.benchmark != "tasks" and each.result is not None:
            groups.setdefault((each.benchmark, each.length), {}).setdefault(each.task, each)
    found = []
    for (benchmark, length), tasks in groups.items():
        of = len(BENCHMARKS["ruler"]) if benchmark == "ruler" else _LONGBENCH_TASKS
        mine = [each.result.value for each in tasks.values() if each.result is not None]
        theirs = [each.source.value for each in tasks.values() if each.source is not None]
        source = math.fsum(theirs) / len(theirs) if len(theirs) == len(mine) else None
        found.append(Average(benchmark, length, len(mine), of, math.fsum(mine) / len(mine), source))
    return found


def task_traps(asked: Asked) -> tuple[str, ...]:
    """What has to be known to read the score of this task."""
    traps: list[str] = []
    if asked.benchmark == "ruler":
        if RULER[asked.task].scorer == "string_match_part":
            traps.append(QA_TRAP)
        if asked.task == "ruler_cwe" and asked.asked is not None and asked.asked < 4096:
            traps.append(CWE_TRAP)
        if asked.length != asked.asked:
            traps.append(
                f"Asked for at {asked.asked} tokens, so that what lm-eval adds after measuring fits {asked.length}."
            )
    return tuple(traps)


def report_traps(scores: Sequence[TaskScore]) -> tuple[str, ...]:
    """What holds for every task of the benchmarks that were run."""
    traps: list[str] = []
    if any(each.benchmark == "ruler" for each in scores):
        traps += RULER_TRAPS
    if any(each.benchmark == "longbench" for each in scores):
        traps += LONGBENCH_TRAPS
    return tuple(traps)


def _demand_same_documents(task: str, result: Answers, source: Answers) -> None:
    mine, theirs = (
        {(int(sample["doc_id"]), sample["doc_hash"]) for sample in each.samples} for each in (result, source)
    )
    if mine != theirs:
        raise InternalError(f"result and source were asked other documents of {task}.", "Please report this.")


def _binary(values: Sequence[float]) -> bool:
    return all(value in (0.0, 1.0) for value in values)


def _number(value: Any) -> bool:
    # NumPy's scalars are numbers too: what float() takes, text aside.
    if isinstance(value, str | bytes):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
