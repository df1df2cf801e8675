"""One key with several values, all of them wanted, in any order."""

from __future__ import annotations

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import plant
from ctxforge.verification.tasks.multi_key import INSTRUCTION
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.room import generation_room
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import keys, numbers

VALUES = 4


def _build(frame: Frame, request: Request) -> Prompt:
    rng = request.rng()
    (word,), values = keys(rng, 1), numbers(rng, VALUES)
    needles = frame.encode.once([f" One of the numbers of {word} is {value}." for value in values])
    closing = frame.closing(
        f" What are all the numbers of {word} in the text above?", f" All {VALUES} numbers of {word} are"
    )
    room = generation_room(frame, 40, values)
    stack = plant(
        frame,
        request,
        opening=frame.opening(INSTRUCTION),
        needles=needles,
        behind=len(closing) + room,
        asked=None,
    )
    return Prompt(
        task=request.task,
        context=stack.ids,
        questions=(Question(closing),),
        references=tuple(values),
        length=request.length,
        depth=None,
        strata=request.strata,
        seed=request.seed,
        haystack=stack.span,
        room=room,
        match="all",
    )


TASK = Task(
    name="multi-value",
    title="Four values of one key",
    reference="RULER niah_multivalue (2404.06654): 4 values, share of them in the generated answer",
    scoring="generated",
    shows="Whether a model goes on after the first thing it finds.",
    cost="one forward and about 50 generated tokens",
    build=_build,
    depth_matters=False,
)
