"""A numbered list in which ten words come often and all the others rarely."""

from __future__ import annotations

from itertools import accumulate

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import too_short
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.room import generation_room
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import listed

COMMON = 10
ROOM = 120
_LONG = 4096
# (how often common words come, how often the others do, words of the example, and the same of the example).
_FREQUENCIES = {False: (6, 1, 20, 3, 1), True: (30, 3, 40, 10, 3)}
_INSTRUCTION = "Here is a numbered list of words. Some of them come more often than others; remember those.\n"
_ASK = f" Which {COMMON} words are the most common ones in the list above?"
_LEAD = f" The {COMMON} most common words of the list are"


def _build(frame: Frame, request: Request) -> Prompt:
    often, rarely, example_words, example_often, example_rarely = _FREQUENCIES[request.length >= _LONG]
    rng = request.rng()
    # An entry has at least two tokens.
    words = listed(rng, COMMON + example_words + request.length // (2 * rarely) + 1)
    common, words = _apart(words, COMMON)
    example_common, words = _apart(words, COMMON)
    example = example_common * example_often + words[: example_words - COMMON] * example_rarely
    rare = words[example_words - COMMON :]
    rng.shuffle(example)
    shown = _numbered(example) + _LEAD + _numbered(example_common)
    opening = frame.opening(_INSTRUCTION) + frame.encode.once([f"{shown}.\n"])[0]
    closing = frame.closing(_ASK, _LEAD)
    room = generation_room(frame, ROOM, [f"{n}. {word}" for n, word in enumerate(common, 1)])
    frame.encode.all(f" {word}" for word in (*common, *rare))
    entries = [f" {word}" for word in common for _ in range(often)]
    # The list may end anywhere, so the last of the rare words may come less often than the others.
    tail = [f" {word}" for word in rare for _ in range(rarely)]
    number_sizes = [len(frame.encode(f" {n}.")) for n in range(1, len(entries) + len(tail) + 1)]
    sizes = list(accumulate(map(len, map(frame.encode, entries + tail))))
    totals = [size + numbers for size, numbers in zip(sizes, accumulate(number_sizes), strict=True)]

    def choose(length: int) -> tuple[int, int] | None:
        """(entries, tokens of filler in front), or None."""
        space = length - len(opening) - len(closing) - room
        most = sum(total <= space for total in totals)
        for count in range(most, max(len(entries), most - 40), -1):
            if frame.filler.fits(space - totals[count - 1]):
                return count, space - totals[count - 1]
        return None

    found = choose(request.length)
    if found is None:
        # Beyond 4096 tokens other frequencies would apply.
        alike = request.length >= _LONG
        raise too_short(request, lambda longer: (longer.length >= _LONG) == alike and choose(longer.length) is not None)
    count, front = found
    entries = (entries + tail)[:count]
    rng.shuffle(entries)
    ids = [*opening, *frame.filler.text(rng, front).take(front)]
    first = len(ids)
    for number, entry in enumerate(entries, 1):
        ids += frame.encode(f" {number}.")
        ids += frame.encode(entry)
    return Prompt(
        task=request.task,
        context=tuple(ids),
        questions=(Question(closing),),
        references=tuple(common),
        length=request.length,
        depth=None,
        strata=request.strata,
        seed=request.seed,
        haystack=(first, len(ids)),
        room=room,
        match="all",
    )


def _apart(words: list[str], count: int) -> tuple[list[str], list[str]]:
    """The first `count` words of which none contains another, and the rest: substrings would be found by mistake."""
    chosen: list[str] = []
    for word in words:
        if len(chosen) < count and not any(word in other or other in word for other in chosen):
            chosen.append(word)
    return chosen, [word for word in words if word not in chosen]


def _numbered(words: list[str]) -> str:
    return "".join(f" {n}. {word}" for n, word in enumerate(words, 1))


TASK = Task(
    name="common-words",
    title="Common words",
    reference="RULER cwe (2404.06654): 10 words 30 times, others 3 times (6 and 1 below 4096 tokens), one example",
    scoring="generated",
    shows="Aggregation over the whole context: counting, not looking up.",
    cost="one forward and about 120 generated tokens",
    build=_build,
    depth_matters=False,
)
