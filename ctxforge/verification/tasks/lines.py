"""Numbered registers, one a line, each with a name; one is asked for."""

from __future__ import annotations

import random

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.records import Record, build_records
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Task
from ctxforge.verification.tasks.words import pairs, walk

_FIVE_DIGITS = 90_000


def _draw(rng: random.Random, count: int) -> list[Record]:
    every = pairs()
    names = [every[n] for n in walk(rng, len(every), count)]
    values = [10_000 + n for n in walk(rng, _FIVE_DIGITS, count)]
    return [
        Record(name, f"line {name}: REGISTER_CONTENT is", f" <{value}", ">\n")
        for name, value in zip(names, values, strict=False)
    ]


def _build(frame: Frame, request: Request) -> Prompt:
    return build_records(
        frame,
        request,
        draw=_draw,
        instruction="Here is a record of lines. Each has a name and a REGISTER_CONTENT. Remember all of them.\n",
        ask="What is the REGISTER_CONTENT in line {key}? Give the number.",
    )


TASK = Task(
    name="lines",
    title="LongChat lines",
    reference="LongEval line retrieval (lmsys.org, LongChat), as extended by Giraffe (2308.10882), in the same form",
    scoring="teacher-forced",
    shows="Retrieval by name where the whole context is distractors.",
    cost="one forward",
    build=_build,
)
