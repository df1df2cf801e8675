"""UUID to UUID in a context that holds nothing else."""

from __future__ import annotations

import random

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.records import Record, build_records
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Task
from ctxforge.verification.tasks.words import random_uuid


def _draw(rng: random.Random, count: int) -> list[Record]:
    found = []
    for _ in range(count):
        key, value = random_uuid(rng), random_uuid(rng)
        found.append(Record(key, f"The code of {key} is", f" {value}", ".\n"))
    return found


def _build(frame: Frame, request: Request) -> Prompt:
    return build_records(
        frame,
        request,
        draw=_draw,
        instruction="Here is a list of codes. Remember all of them.\n",
        ask="What is the code of {key}?",
    )


TASK = Task(
    name="uuid",
    title="UUID needles",
    reference="RULER niah_multikey_3 (2404.06654): UUID keys and values, distractors everywhere",
    scoring="teacher-forced",
    shows="Exact attention over many tokens that words cannot help with; the hardest retrieval here.",
    cost="one forward",
    build=_build,
)
