"""The cells of the retrieval grid as prompts: every depth asks another needle of the same haystack."""

from __future__ import annotations

import random

from ctxforge.verification.needles import QUESTION, Haystack, bundled_words, make_needle
from ctxforge.verification.needles import plant as plant_grid
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import too_short
from ctxforge.verification.tasks.multi_key import INSTRUCTION
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task


def _build(frame: Frame, request: Request) -> Prompt:
    def ends(word: str, question: tuple[int, ...]) -> tuple[int, ...]:
        lead = QUESTION.format(word=word)
        return question if not frame.chat else frame.closing(f" What is the number of {word} in the text above?", lead)

    def sizes() -> list[tuple[int, int]]:
        made = [make_needle(frame.tokenizer, word, "12345") for word in bundled_words()]
        return [(len(needle.ids), len(ends(needle.word, needle.question)) + len(needle.answer)) for needle in made]

    known = frame.remember("kv-grid sizes", sizes)
    needle_size, behind = max(n for n, _ in known), max(b for _, b in known)
    opening = frame.opening(INSTRUCTION)

    def strata(length: int) -> int:
        return min(request.strata, (length - behind - len(opening)) // (2 * needle_size))

    if strata(request.length) <= request.depth:
        raise too_short(request, lambda longer: strata(longer.length) >= request.strata)
    shared = request.length - behind
    # One haystack for all depths, so that branch rows pay for it once.
    stack, body = frame.remember(
        f"kv-grid {request.length} {request.strata} {request.seed}", lambda: _haystack(frame, request, shared, opening)
    )
    cell = next((cell for cell in stack.cells if cell.stratum == request.depth), None)
    if cell is None:
        raise too_short(request, lambda longer: strata(longer.length) >= 2 * request.strata)
    needle = stack.needles[cell.needle]
    question = ends(needle.word, needle.question)
    # Shorter questions get a little more of the same text, so contexts of one haystack begin alike.
    used = shared - len(opening) - sum(len(other.ids) for other in stack.needles)
    spare = behind - len(question) - len(needle.answer)
    return Prompt(
        task=request.task,
        context=(*stack.ids, *body[used : used + spare]),
        questions=(Question(question, (needle.answer,)),),
        references=(needle.digits,),
        length=request.length,
        depth=request.depth,
        strata=cell.strata,
        seed=request.seed,
        position=stack.starts[cell.needle],
        haystack=(0, len(stack.ids)),
    )


def _haystack(frame: Frame, request: Request, shared: int, opening: tuple[int, ...]) -> tuple[Haystack, list[int]]:
    """The haystack of `shared` tokens, and the filler it was made from, which goes on behind it."""
    rng = random.Random(f"ctxforge kv-grid filler {request.length} {request.seed}")
    size = max(request.length, frame.filler.solid)
    body = frame.filler.text(rng, size).take(size)
    stack = plant_grid(
        frame.tokenizer, body, lengths=(shared,), strata=request.strata, seed=request.seed, prefix=opening
    )
    return stack, body


TASK = Task(
    name="kv-grid",
    title="Key-value grid",
    reference="needle in a haystack with a needle for every depth at once, hence the multi-key variant (2404.06654)",
    scoring="teacher-forced",
    shows="Retrieval by depth and length; the heat map of a report.",
    cost="one forward for all depths",
    build=_build,
)
