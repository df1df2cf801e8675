"""A block of random word tokens that comes back: its beginning is given, the rest must follow."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ctxforge.errors import UsageError
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.grammar import vocabulary
from ctxforge.verification.tasks.haystack import plant
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task

BLOCK = 32
_CUE, _CUE_OF_LETTERS = 4, 8
_ENOUGH_WORDS = 64
_NAME = "copy"
_INSTRUCTION = "Here is a text."


def _build(frame: Frame, request: Request) -> Prompt:
    block, cue = _block(frame, request.rng())
    question = _question(frame, block[:cue])
    stack = plant(
        frame, request, opening=frame.opening(_INSTRUCTION), needles=[block], behind=len(question) + BLOCK - cue
    )
    prompt = _prompt(frame, request, stack.ids, question, block[cue:], stack.starts[0], stack.span)
    # The shortest haystack has room for the block alone, at any depth: it is the one that was asked for.
    return replace(prompt, depth=request.depth)


def copy_at(frame: Frame, *, distance: int, offset: int, seed: int = 0) -> Prompt:
    """A prompt whose block begins `offset` tokens after the beginning and comes back `distance` tokens later.

    So distance and absolute position are told apart: a model may fail at a distance, or at a position. Where no whole
    sentences have so many tokens, the next longer fit is taken; `position` and `ids` of the prompt say what it became.

    Raises:
        UsageError: the block does not fit into the distance.
    """
    block, cue = _block(frame, random.Random(f"ctxforge copy at {distance} {offset} {seed}"))
    question = _question(frame, block[:cue])
    opening = frame.opening(_INSTRUCTION)
    before = _next_fit(frame, max(offset - len(opening), 0))
    between = distance - BLOCK - (len(question) - cue)
    if between < 0:
        raise UsageError(
            f"a block of {BLOCK} tokens does not fit into a distance of {distance}.",
            f"The shortest distance is {distance - between}.",
        )
    between = _next_fit(frame, between)
    rng = random.Random(f"ctxforge copy filler {seed}")
    text = frame.filler.text(rng, before + between)
    ids = [*opening, *text.take(before)]
    start = len(ids)
    ids += [*block, *text.take(between)]
    length = len(ids) + len(question) + BLOCK - cue
    request = Request(_NAME, length, seed=seed)
    prompt = _prompt(frame, request, tuple(ids), question, block[cue:], start, (len(opening), len(ids)))
    assert prompt.tokens == length
    return prompt


def sweep(
    frame: Frame, *, distances: Sequence[int], offsets: Sequence[int], seeds: int = 1
) -> Iterator[tuple[int, int, Prompt]]:
    """(distance, offset, prompt) of every combination."""
    for distance in distances:
        for offset in offsets:
            for seed in range(seeds):
                yield distance, offset, copy_at(frame, distance=distance, offset=offset, seed=seed)


def _block(frame: Frame, rng: random.Random) -> tuple[tuple[int, ...], int]:
    """The block, and how many of its tokens are given."""
    words = [f" {word}" for slot in ("adjective", "animal", "thing", "place") for word in vocabulary()[slot]]
    frame.encode.all(words)
    pieces = [frame.encode(word) for word in dict.fromkeys(words)]
    single = sorted({piece[0] for piece in pieces if len(piece) == 1})
    if len(single) >= _ENOUGH_WORDS:
        return tuple(rng.sample(single, BLOCK)), _CUE
    # Characters or bytes: a longer beginning makes sure that it occurs nowhere else.
    letters = sorted({token for piece in pieces for token in piece})
    return tuple(rng.choices(letters, k=BLOCK)), _CUE_OF_LETTERS


def _question(frame: Frame, cue: tuple[int, ...]) -> tuple[int, ...]:
    if not frame.chat:
        return cue
    return frame.encode(" Find the row of unrelated words above, and repeat it.") + frame.behind + cue


def _next_fit(frame: Frame, tokens: int) -> int:
    while not frame.filler.fits(tokens):
        tokens += 1
    return tokens


def _prompt(
    frame: Frame,
    request: Request,
    context: tuple[int, ...],
    question: tuple[int, ...],
    answer: tuple[int, ...],
    start: int,
    span: tuple[int, int],
) -> Prompt:
    share = (start - span[0]) / max(span[1] - span[0] - BLOCK, 1)
    return Prompt(
        task=request.task,
        context=context,
        questions=(Question(question, tuple((token,) for token in answer)),),
        references=(frame.encode.decode(answer),),
        length=request.length,
        depth=min(int(share * request.strata), request.strata - 1),
        strata=request.strata,
        seed=request.seed,
        position=start,
        haystack=span,
    )


TASK = Task(
    name=_NAME,
    title="Copy at a distance",
    reference="induction on random tokens; `sweep` varies distance and absolute position apart",
    scoring="teacher-forced",
    shows="The bare skill of copying; for small models made for it. Pretrained ones below 1B copy random words badly.",
    cost="one forward",
    build=_build,
)
