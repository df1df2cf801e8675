"""Contexts that consist of records, one a line, of which one is asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ctxforge.errors import UsageError
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import too_short
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question

# Records that may be left away so that filler in front can make the length exact.
_SPARE = 24


@dataclass(frozen=True)
class Record:
    """One line: `lead` and `value` make it up to `end`; `key` is what a chat model is asked about."""

    key: str
    lead: str
    value: str
    end: str

    @property
    def text(self) -> str:
        """The whole line."""
        return self.lead + self.value + self.end


def build_records(
    frame: Frame,
    request: Request,
    *,
    draw: Callable[[random.Random, int], Sequence[Record]],
    instruction: str,
    ask: str,
) -> Prompt:
    """Fill the context with records, and ask for one that begins in the request's depth stratum.

    Depth is measured among the records. What is missing to the exact length is filler in front of them.

    Args:
        frame: of the tokenizer.
        request: length, depth and seed.
        draw: gives so many different records; the first ones must not depend on how many are wanted.
        instruction: for chat models, in front of the context.
        ask: question to a chat model, with `{key}`.

    Raises:
        UsageError: the length is too short, or there are not so many different records.
    """
    opening = frame.opening(instruction)
    records: list[Record] = []
    lines: list[tuple[int, ...]] = []

    def more(count: int) -> None:
        drawn = draw(request.at_depth(0).rng("records"), count)
        if len(drawn) <= len(records):
            raise UsageError(
                f"task {request.task!r} has no more than {len(records)} different records, too few for "
                f"{request.length} tokens.",
                "Ask for a shorter length.",
            )
        lines.extend(frame.encode.once([record.text for record in drawn[len(records) :]]))
        records[:] = drawn

    def closing(number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        record = records[number]
        _, answer = frame.encode.fact(record.lead, record.value, record.end)
        return frame.closing(ask.format(key=record.key), record.lead), answer

    def choose(wanted: Request) -> tuple[int, int, int] | None:
        """(records, number asked for, tokens of filler in front), or None."""
        while sum(map(len, lines)) < wanted.length:
            mean = sum(map(len, lines)) / len(lines) if lines else 16
            more(len(lines) + 8 + int((wanted.length - sum(map(len, lines))) / mean))
        rng = wanted.rng("asked")
        ends = list(accumulate(map(len, lines)))
        most = sum(end < wanted.length - len(opening) for end in ends)
        for count in range(most, max(most - _SPARE - len(ends) // 50, 0), -1):
            total = ends[count - 1]
            choices = [
                n
                for n in range(count)
                if wanted.depth
                <= (ends[n] - len(lines[n])) * wanted.strata / max(total - len(lines[n]), 1)
                <= wanted.depth + 1
            ]
            for number in rng.sample(choices, min(len(choices), 3)):
                question, answer = closing(number)
                front = wanted.length - len(opening) - total - len(question) - len(answer)
                if front == 0:
                    return count, number, 0
                front -= len(frame.line_break)
                if front > 0 and frame.filler.fits(front):
                    return count, number, front
        return None

    found = choose(request)
    if found is None:
        raise too_short(request, lambda longer: all(choose(longer.at_depth(depth)) for depth in range(request.strata)))
    count, number, front = found
    question, answer = closing(number)
    ids = list(opening)
    if front:
        ids += [*frame.filler.text(request.rng("filler"), front).take(front), *frame.line_break]
    first = len(ids)
    starts = []
    for line in lines[:count]:
        starts.append(len(ids))
        ids += line
    return Prompt(
        task=request.task,
        context=tuple(ids),
        questions=(Question(question, (answer,)),),
        references=(records[number].value.strip(" <"),),
        length=request.length,
        depth=request.depth,
        strata=request.strata,
        seed=request.seed,
        position=starts[number],
        haystack=(first, len(ids)),
    )
