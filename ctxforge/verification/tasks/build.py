"""Prompts of a task, for any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxforge.errors import InternalError
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.registry import find_task
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Task


def build(
    task: Task | str,
    frame: Frame | Any,
    length: int,
    *,
    depth: int = 0,
    seed: int = 0,
    strata: int = 10,
    data: Path | None = None,
) -> Prompt:
    """One prompt; the same arguments give the same ids in any process.

    Args:
        task: a task or its name.
        frame: a `Frame` of the tokenizer (keep it: it remembers what was tokenised), or a tokenizer of a base model.
        length: tokens of prompt and answer together, met exactly.
        depth: stratum of the needle that is asked for, 0 ... strata - 1; tasks without a depth pass over it.
        seed: of words, values and positions; the number of the question for tasks with a data set.
        strata: number of depth strata.
        data: the user's copy of the data set.

    Raises:
        UsageError: the length is too short, or the data set is missing or of another kind.
        UnsupportedError: the tokenizer cannot spell the task's texts.
    """
    chosen = find_task(task) if isinstance(task, str) else task
    made = frame if isinstance(frame, Frame) else Frame(frame)
    wanted = depth if chosen.depth_matters else 0
    prompt = chosen.build(made, Request(chosen.name, length, wanted, strata, seed, data))
    if prompt.tokens > length or (prompt.exact_length and prompt.tokens != length):
        raise InternalError(
            f"a prompt of task {chosen.name!r} has {prompt.tokens} tokens and not {length}.", "Please report this."
        )
    return prompt


def build_all(
    task: Task | str,
    frame: Frame | Any,
    *,
    lengths: Sequence[int],
    seeds: int,
    first_seed: int = 0,
    strata: int = 10,
    data: Path | None = None,
) -> Iterator[Prompt]:
    """Prompts of every length, of `seeds` seeds from `first_seed` on and, where the task has one, of every depth."""
    chosen = find_task(task) if isinstance(task, str) else task
    made = frame if isinstance(frame, Frame) else Frame(frame)
    for length in lengths:
        for seed in range(first_seed, first_seed + seeds):
            for depth in range(strata) if chosen.depth_matters else (0,):
                yield build(chosen, made, length, depth=depth, seed=seed, strata=strata, data=data)
