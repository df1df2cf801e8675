"""A chain of assignments through which a value must be followed."""

from __future__ import annotations

from itertools import pairwise

from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import plant
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task
from ctxforge.verification.tasks.words import names, numbers

HOPS = 4
_LETTERS, _EXAMPLE_LETTERS = 5, 3


def _build(frame: Frame, request: Request) -> Prompt:
    rng = request.rng()
    value, example_value = numbers(rng, 2)
    chain, example = names(rng, HOPS + 1, _LETTERS), names(rng, HOPS + 1, _EXAMPLE_LETTERS)
    # One solved example, as RULER has it: it shows the form, and that the answer is in order of assignment.
    shown = " ".join(_assignments(example, example_value)) + _lead(example_value) + "".join(f" {n}" for n in example)
    opening = frame.opening(_INSTRUCTION) + frame.encode.once([f"{shown}.\n"])[0]
    pieces = frame.encode.once([f" {name}" for name in chain])
    closing = frame.closing(_ask(value), _lead(value))
    stack = plant(
        frame,
        request,
        opening=opening,
        needles=frame.encode.once([f" {text}" for text in _assignments(chain, value)]),
        behind=len(closing) + sum(map(len, pieces)),
        asked=None,
        ordered=True,
    )
    return Prompt(
        task=request.task,
        context=stack.ids,
        questions=(Question(closing, tuple(pieces)),),
        references=tuple(chain),
        length=request.length,
        depth=None,
        strata=request.strata,
        seed=request.seed,
        haystack=stack.span,
    )


_INSTRUCTION = "Follow the chain of assignments that is hidden in the following text. An example comes first.\n"


def _assignments(chain: list[str], value: str) -> list[str]:
    rest = [f"VAR {name} = VAR {before}." for before, name in pairwise(chain)]
    return [f"VAR {chain[0]} = {value}.", *rest]


def _ask(value: str) -> str:
    return f" Which variables hold the value {value} in the text above? Name them in order of assignment."


def _lead(value: str) -> str:
    return f" The {HOPS + 1} variables that hold {value} are"


TASK = Task(
    name="variable-tracking",
    title="Variable tracking",
    reference="RULER vt (2404.06654): 1 chain, 4 hops, one example; names are scored in order of assignment here",
    scoring="teacher-forced",
    shows="Following references over a distance. For models from about 3B on; smaller ones fail it at any length.",
    cost="one forward",
    build=_build,
    depth_matters=False,
)
