"""Coded words whose frequencies follow Zipf's law; the three most frequent ones are asked for."""

from __future__ import annotations

import math
from itertools import pairwise

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import too_short
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.room import generation_room
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import codes

ALPHA = 2.0
ASKED = 3
ROOM = 50
_LETTERS = 6
_TOKENS_PER_WORD = 50
_ZETA = math.pi**2 / 6
# The most frequent rank of all is noise, to be ignored.
_NOISE = " ..."
_INSTRUCTION = "Here is a text of coded words. Count how often each of them comes.\n"
_ASK = f" Which {ASKED} coded words come most often in the text above? Ignore the dots."
_LEAD = f" The {ASKED} coded words that come most often are"


def _build(frame: Frame, request: Request) -> Prompt:
    rng = request.rng()
    vocabulary = [_NOISE, *(f" {code}" for code in codes(rng, max(request.length // _TOKENS_PER_WORD, 8), _LETTERS))]
    pieces = frame.encode.once(vocabulary)
    answers = [word.strip() for word in vocabulary[1 : ASKED + 1]]
    opening, closing = frame.opening(_INSTRUCTION), frame.closing(_ASK, _LEAD)
    room = generation_room(frame, ROOM, answers)

    def counts(words: int) -> list[int]:
        return [int(words * rank**-ALPHA / _ZETA) for rank in range(1, len(vocabulary) + 1)]

    def total(words: int) -> int:
        return sum(count * len(piece) for count, piece in zip(counts(words), pieces, strict=True))

    def choose(length: int) -> tuple[int, int] | None:
        """(words, tokens of filler in front), or None."""
        space = length - len(opening) - len(closing) - room
        low, high = 0, max(space, 0)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if total(middle) <= space else (low, middle - 1)
        while low > 0:
            found = counts(low)[1 : ASKED + 2]
            if any(a <= b for a, b in pairwise(found)):
                return None
            if frame.filler.fits(space - total(low)):
                return low, space - total(low)
            low -= 1
        return None

    found = choose(request.length)
    if found is None:
        raise too_short(request, lambda longer: bool(choose(longer.length)))
    words, front = found
    text = [piece for piece, count in zip(pieces, counts(words), strict=True) for _ in range(count)]
    rng.shuffle(text)
    ids = [*opening, *frame.filler.text(rng, front).take(front)]
    first = len(ids)
    for piece in text:
        ids += piece
    return Prompt(
        task=request.task,
        context=tuple(ids),
        questions=(Question(closing),),
        references=tuple(answers),
        length=request.length,
        depth=None,
        strata=request.strata,
        seed=request.seed,
        haystack=(first, len(ids)),
        room=room,
        match="all",
    )


TASK = Task(
    name="frequent-words",
    title="Frequent words",
    reference="RULER fwe (2404.06654): Zipf with alpha 2.0, length/50 words of 6 letters, top 3 below the noise",
    scoring="generated",
    shows="Aggregation over the whole context, with words that no model has seen.",
    cost="one forward and about 50 generated tokens",
    build=_build,
    depth_matters=False,
)
