"""Haystacks: needles in filler, exactly as long as asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ctxforge.errors import UsageError
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.layout import in_order, place
from ctxforge.verification.tasks.request import Request

# How far beyond the length that was asked for the shortest possible one is looked for.
_REACH = 4096


@dataclass(frozen=True)
class Haystack:
    """A context with needles.

    Attributes:
        ids: what opens the prompt, and the haystack.
        starts: index in `ids` of each needle's first token, by the needle's number.
        span: first and past-the-last index of the haystack.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    span: tuple[int, int]


def plant(
    frame: Frame,
    request: Request,
    *,
    opening: Sequence[int],
    needles: Sequence[Sequence[int]],
    behind: int,
    asked: int | None = 0,
    ordered: bool = False,
) -> Haystack:
    """Put needles between whole sentences of filler.

    Args:
        frame: of the tokenizer.
        request: length, depth and seed.
        opening: ids in front of the haystack.
        needles: ids of each.
        behind: tokens that come after the context: question, answer, room to generate.
        asked: number of the needle that begins in the request's depth stratum; None for none.
        ordered: keep the needles in their order, at random places (`asked` must be None).

    Raises:
        UsageError: the length is too short; says which would do.
    """
    sizes = [len(needle) for needle in needles]
    room = request.length - len(opening) - behind - sum(sizes)
    filler = frame.filler

    def lay(tokens: int, depth: int, rng: random.Random) -> tuple[list[int], list[int]] | None:
        if ordered:
            gaps = in_order(filler.fits, tokens, len(sizes), rng)
            return None if gaps is None else (list(range(len(sizes))), gaps)
        return place(filler.fits, tokens, sizes, asked, depth, request.strata, rng)

    rng = request.rng("layout")
    found = lay(room, request.depth, rng) if room >= 0 else None
    if found is None:
        every = range(request.strata) if asked is not None else (request.depth,)

        def works(longer: Request) -> bool:
            tokens = room + longer.length - request.length
            return all(lay(tokens, depth, longer.at_depth(depth).rng("layout")) for depth in every)

        raise too_short(request, works)
    order, gaps = found
    text = filler.text(rng, room)
    ids, starts = list(opening), [0] * len(needles)
    for number, gap in zip(order, gaps, strict=False):
        ids += text.take(gap)
        starts[number] = len(ids)
        ids += needles[number]
    ids += text.take(gaps[-1])
    assert len(ids) + behind == request.length
    return Haystack(tuple(ids), tuple(starts), (len(opening), len(ids)))


def too_short(request: Request, works: Callable[[Request], bool]) -> UsageError:
    """The error for a length at which a task cannot be built, with the next one at which it can.

    Args:
        request: what was asked for.
        works: whether a longer request would do.
    """
    longer = (replace(request, length=request.length + more) for more in range(1, _REACH))
    found = next((other.length for other in longer if works(other)), None)
    remedy = (
        "Ask for a longer length." if found is None else f"The shortest length for it with this tokenizer is {found}."
    )
    return UsageError(f"{request.length} tokens are too few for a prompt of task {request.task!r}.", remedy)
