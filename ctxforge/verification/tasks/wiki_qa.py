"""Giraffe's questions about a Wikipedia article, from the user's copy of the data sets."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.verification.tasks.data_files import read_data, wrong_rows
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task

ROOM = 50
_LEAD = "\nAnswer:"
_ROWS = "`conversations` with the prompt and the answer, each with a `value`"
_FREE_FORM = "abacusai/WikiQA-Free_Form_QA from the Hugging Face Hub (one file a length: 2k, 4k, 8k, 16k)"
_NUMERIC = "abacusai/WikiQA-Altered_Numeric_QA from the Hugging Face Hub (one file a length: 2k, 4k, 8k, 16k)"


@dataclass(frozen=True)
class _Row:
    text: str
    answer: str
    ids: tuple[int, ...]


def _build(frame: Frame, request: Request) -> Prompt:
    """Row number `seed` among those that fit into the length; none is ever cut."""
    rows = frame.remember(f"{request.task} {request.data}", lambda: _rows(frame, request))
    closing = frame.closing("", _LEAD)
    spare = request.length - len(frame.before) - len(closing) - ROOM
    fitting = [row for row in rows if len(row.ids) <= spare]
    if request.seed >= len(fitting):
        shortest = min(len(row.ids) for row in rows) + request.length - spare
        raise UsageError(
            f"{len(fitting)} of the {len(rows)} prompts in {request.data} fit into {request.length} tokens, and number "
            f"{request.seed} was asked for.",
            f"Ask for fewer prompts or a longer length (the shortest prompt needs {shortest} tokens).",
        )
    row = fitting[request.seed]
    where = row.text.find(row.answer.strip())
    return Prompt(
        task=request.task,
        context=frame.before + row.ids,
        questions=(Question(closing),),
        references=(row.answer,),
        length=request.length,
        depth=None if where < 0 else min(where * request.strata // len(row.text), request.strata - 1),
        strata=request.strata,
        seed=request.seed,
        haystack=(len(frame.before), len(frame.before) + len(row.ids)),
        room=ROOM,
        match="presence",
        exact_length=False,
    )


def _rows(frame: Frame, request: Request) -> list[_Row]:
    what = {task.name: task.data for task in TASKS}[request.task]
    found = read_data(request.data, task=request.task, what=what)
    wrong = wrong_rows(request.data, task=request.task, expected=_ROWS)
    if not isinstance(found, list) or not found:
        raise wrong
    rows = []
    for row in found:
        try:
            prompt, answer = (turn["value"] for turn in row["conversations"][:2])
        except (KeyError, TypeError, ValueError) as error:
            raise wrong from error
        if not isinstance(prompt, str) or not isinstance(answer, str) or not answer.strip():
            raise wrong
        rows.append(_Row(prompt, answer, frame.encode.plain(prompt)))
    return rows


TASKS = (
    Task(
        name="free-form-qa",
        title="Free-form questions (WikiQA)",
        reference="Giraffe (2308.10882): FFQA, presence of the answer in 50 generated tokens",
        scoring="generated",
        shows="Reading comprehension over a real article; answers may be known from pre-training.",
        cost="one forward and 50 generated tokens",
        build=_build,
        depth_matters=False,
        data=_FREE_FORM,
    ),
    Task(
        name="altered-numeric-qa",
        title="Altered numeric questions (WikiQA)",
        reference="Giraffe (2308.10882): AltQA, every number changed so that memory cannot answer",
        scoring="generated",
        shows="The same where only the context holds the answer.",
        cost="one forward and 50 generated tokens",
        build=_build,
        depth_matters=False,
        data=_NUMERIC,
    ),
)
