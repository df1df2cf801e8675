"""One needle asked for among others of the same form."""

from __future__ import annotations

from ctxforge.verification.needles import QUESTION
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import plant
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import keys, numbers

NEEDLES = 4
INSTRUCTION = "Some numbers are hidden in the following text. Remember them."


def _build(frame: Frame, request: Request) -> Prompt:
    rng = request.rng()
    words, values = keys(rng, NEEDLES), numbers(rng, NEEDLES)
    leads = [QUESTION.format(word=word) for word in words]
    facts = [frame.encode.fact(lead, f" {value}", ".") for lead, value in zip(leads, values, strict=True)]
    answer = facts[0][1]
    closing = frame.closing(f" What is the number of {words[0]} in the text above?", leads[0])
    stack = plant(
        frame,
        request,
        opening=frame.opening(INSTRUCTION),
        needles=[needle for needle, _ in facts],
        behind=len(closing) + len(answer),
    )
    return Prompt(
        task=request.task,
        context=stack.ids,
        questions=(Question(closing, (answer,)),),
        references=(values[0],),
        length=request.length,
        depth=request.depth,
        strata=request.strata,
        seed=request.seed,
        position=stack.starts[0],
        haystack=stack.span,
    )


TASK = Task(
    name="multi-key",
    title="Needle among three distractors",
    reference="RULER niah_multikey_1 (2404.06654): 4 keys, one asked for",
    scoring="teacher-forced",
    shows="Whether the right needle is found and not just any of them.",
    cost="one forward",
    build=_build,
)
