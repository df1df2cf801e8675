"""The first sentence of a long text."""

from __future__ import annotations

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import too_short
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task

_LEAD = " The first sentence of the text above is:"


def _build(frame: Frame, request: Request) -> Prompt:
    rng = request.rng()
    text = frame.filler.text(rng, request.length)
    sentence = text.sentence()
    opening = frame.opening("Here is a text.")
    closing = frame.closing(" Repeat the first sentence of the text above.", _LEAD)
    rest = request.length - len(opening) - len(closing) - 2 * len(sentence)
    if not frame.filler.fits(rest):
        raise too_short(request, lambda longer: frame.filler.fits(rest + longer.length - request.length))
    ids = (*opening, *sentence, *text.take(rest))
    return Prompt(
        task=request.task,
        context=ids,
        questions=(Question(closing, (sentence,)),),
        references=(frame.encode.decode(sentence).strip(),),
        length=request.length,
        depth=None,
        strata=request.strata,
        seed=request.seed,
        position=len(opening),
        haystack=(len(opening), len(ids)),
    )


TASK = Task(
    name="first-sentence",
    title="First sentence",
    reference="2309.16039, figure of first-sentence retrieval; scored by token here, by ROUGE-L there",
    scoring="teacher-forced",
    shows="How far back a model can reach: always the largest distance that the length has.",
    cost="one forward",
    build=_build,
    depth_matters=False,
)
