"""One number in a text that never repeats itself."""

from __future__ import annotations

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import plant
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import numbers

_LEAD = " The pass key is"


def _build(frame: Frame, request: Request) -> Prompt:
    (value,) = numbers(request.rng(), 1)
    needle, answer = frame.encode.fact(_LEAD, f" {value}", ". Remember it.")
    closing = frame.closing(" What is the pass key in the text above?", _LEAD)
    opening = frame.opening("There is a pass key in the following text. Remember it.")
    stack = plant(frame, request, opening=opening, needles=[needle], behind=len(closing) + len(answer))
    return Prompt(
        task=request.task,
        context=stack.ids,
        questions=(Question(closing, (answer,)),),
        references=(value,),
        length=request.length,
        depth=request.depth,
        strata=request.strata,
        seed=request.seed,
        position=stack.starts[0],
        haystack=stack.span,
    )


TASK = Task(
    name="passkey",
    title="Pass key",
    reference="landmark attention (2305.16300), with five digits always and filler that does not repeat",
    scoring="teacher-forced",
    shows="One fact, no distractors: a model that fails it does not see that depth at all.",
    cost="one forward",
    build=_build,
)
