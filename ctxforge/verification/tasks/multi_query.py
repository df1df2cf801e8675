"""Several needles, all of them asked for."""

from __future__ import annotations

from ctxforge.verification.needles import QUESTION
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import plant
from ctxforge.verification.tasks.multi_key import INSTRUCTION
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import keys, numbers

QUERIES = 4


def _build(frame: Frame, request: Request) -> Prompt:
    rng = request.rng()
    words, values = keys(rng, QUERIES), numbers(rng, QUERIES)
    questions, needles = [], []
    for word, value in zip(words, values, strict=True):
        lead = QUESTION.format(word=word)
        needle, answer = frame.encode.fact(lead, f" {value}", ".")
        closing = frame.closing(f" What is the number of {word} in the text above?", lead)
        questions.append(Question(closing, (answer,)))
        needles.append(needle)
    stack = plant(
        frame,
        request,
        opening=frame.opening(INSTRUCTION),
        needles=needles,
        behind=max(len(q.ids) + len(q.answer_ids) for q in questions),
        asked=None,
    )
    return Prompt(
        task=request.task,
        context=stack.ids,
        questions=tuple(questions),
        references=tuple(values),
        length=request.length,
        depth=None,
        strata=request.strata,
        seed=request.seed,
        haystack=stack.span,
    )


TASK = Task(
    name="multi-query",
    title="Four needles, all asked for",
    reference="RULER niah_multiquery (2404.06654): 4 keys; here each is a question of its own after the same context",
    scoring="teacher-forced",
    shows="Whether everything in a context is found, wherever it lies; recall is the share that was.",
    cost="one forward for the four questions",
    build=_build,
    depth_matters=False,
)
