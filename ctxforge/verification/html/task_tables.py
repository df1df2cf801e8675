"""Tasks as tables: how many answers were right, how surprising they were, and what was generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctxforge.verification.html import numbers
from ctxforge.verification.html.tables import Table
from ctxforge.verification.statistics import FEWEST_UNITS, wilson

if TYPE_CHECKING:
    from ctxforge.verification.measures import Measures
    from ctxforge.verification.tasks.types import PromptScore

FEW = "*"
_LONGEST_OUTPUT = 160


def task_scores(models: Sequence[Measures], trained_length: int) -> Table:
    """A row a task and length: exact share with Wilson's interval, answer loss, recall; a column each for every model.

    More than two models get a row each. Shares of fewer prompts than an interval needs are marked by `FEW`.
    """
    asked = {(score.task, score.length) for model in models for score in model.tasks}
    order = list(dict.fromkeys(score.task for model in models for score in model.tasks))
    beside = len(models) <= 2
    scored = any(score.nll is not None for model in models for score in model.tasks)
    generated = any(score.nll is None for model in models for score in model.tasks)
    names = ["exact (95 %)", *(["answer nats"] if scored else []), *(["recall"] if generated else [])]
    rows, few = [], False
    for task, length in sorted(asked, key=lambda key: (order.index(key[0]), key[1])):
        found = [[s for s in model.tasks if (s.task, s.length) == (task, length)] for model in models]
        few = few or any(0 < len(scores) < FEWEST_UNITS for scores in found)
        cells = [_cells(scores, scored=scored, generated=generated) for scores in found]
        head = (task, numbers.length(length, trained_length))
        if beside:
            rows.append((*head, *(cell for column in zip(*cells, strict=True) for cell in column)))
        else:
            rows += [
                (*head, model.label, *row) for model, row in zip(models, cells, strict=True) if row[0] != numbers.NONE
            ]
    labels = [f"{model.label}: {name}" for name in names for model in models]
    header = ("task", "context", *(labels if beside else ("model", *names)))
    note = f"{FEW} fewer than {FEWEST_UNITS} prompts: too few to conclude anything from." if few else ""
    return Table("Answers by task and length", header, tuple(rows), note=note)


def task_meanings(models: Sequence[Measures]) -> list[tuple[str, str, str]]:
    """(name, title, what a bad score says) of every task that was asked; without words for one that is not known."""
    from ctxforge.verification.tasks import TASKS

    names = dict.fromkeys(score.task for model in models for score in model.tasks)
    return [(n, TASKS[n].title, TASKS[n].shows) if n in TASKS else (n, n, "") for n in names]


def task_outputs(models: Sequence[Measures], trained_length: int) -> Table:
    """One generated output a task, length and model, a wrong one where there is one."""
    rows = []
    for model in models:
        for task, length in dict.fromkeys((s.task, s.length) for s in model.tasks if s.output is not None):
            scores = [s for s in model.tasks if (s.task, s.length) == (task, length) and s.output is not None]
            shown = next((s for s in scores if not s.exact), scores[0])
            words = " ".join((shown.output or "").split())
            words = words if len(words) <= _LONGEST_OUTPUT else words[:_LONGEST_OUTPUT] + "…"
            rows.append(
                (
                    task,
                    numbers.length(length, trained_length),
                    model.label,
                    "yes" if shown.exact else "no",
                    words or "(nothing)",
                )
            )
    header = ("task", "context", "model", "right", "generated (beginning)")
    return Table("One output a task, a wrong one where there is one", header, tuple(rows), numeric=False)


def _cells(scores: Sequence[PromptScore], *, scored: bool, generated: bool) -> tuple[str, ...]:
    losses = [score.nll for score in scores if score.nll is not None]
    recalls = [score.recall for score in scores if score.nll is None]
    cells = [_share(scores)]
    if scored:
        cells.append(numbers.number(math.fsum(losses) / len(losses)) if losses else numbers.NONE)
    if generated:
        cells.append(numbers.percent(math.fsum(recalls) / len(recalls)) if recalls else numbers.NONE)
    return tuple(cells)


def _share(scores: Sequence[PromptScore]) -> str:
    if not scores:
        return numbers.NONE
    hits = sum(score.exact for score in scores)
    mark = f"\u00a0{FEW}" if len(scores) < FEWEST_UNITS else ""
    return f"{hits}/{len(scores)} ({numbers.shares(wilson(hits, len(scores)))}){mark}"
