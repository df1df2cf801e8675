"""RULER's question answering: the documents of SQuAD or HotpotQA as distractors, from the user's copy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.verification.tasks.data_files import read_data, wrong_rows
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.haystack import too_short
from ctxforge.verification.tasks.request import Request
from ctxforge.verification.tasks.types import Prompt, Question, Task

ROOM = 32
_WHAT = "SQuAD's dev-v2.0.json or HotpotQA's hotpot_dev_distractor_v1.json"
_EXPECTED = "SQuAD's `paragraphs` with `qas`, or HotpotQA's `question`, `answer` and `context`"
_INSTRUCTION = "Answer the question from the documents below, with the answer alone and no other word.\n"

# The question, its references, the numbers of its documents, and those of related ones.
_Question = tuple[str, tuple[str, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class _Set:
    """Documents, and questions about them."""

    documents: list[str]
    questions: list[_Question]


def _build(frame: Frame, request: Request) -> Prompt:
    """Question number `seed`: its own documents, those of the same article, then others, in a random order.

    What is missing to the exact length is a further document of filler.
    """
    data = frame.remember(f"{request.task} {request.data}", lambda: _read(request))
    if request.seed >= len(data.questions):
        raise UsageError(
            f"{request.data} has {len(data.questions)} questions, and number {request.seed} was asked for.",
            "Ask for fewer prompts.",
        )
    query, references, own, related = data.questions[request.seed]
    rng = request.rng()
    taken = {*own, *related}
    others = [n for n in range(len(data.documents)) if n not in taken]
    candidates = chain(own, rng.sample(related, len(related)), rng.sample(others, len(others)))
    opening = frame.before + frame.encode(_INSTRUCTION)
    question = f"\nAnswer the question from the documents above.\nQuestion: {query}"
    ending = f"{question}\nAnswer:" if not frame.chat else question
    closing = frame.encode.plain(ending)
    if frame.chat:
        closing += frame.behind + frame.encode("Answer:")
    space = request.length - len(opening) - len(closing) - ROOM
    head = len(frame.encode("Document:\n"))
    sizes: list[int] = []
    chosen: list[int] = []
    documents: dict[int, tuple[int, ...]] = {}
    for number in candidates:
        documents[number] = frame.encode.plain(f"Document:\n{data.documents[number]}\n")
        if sum(sizes) + len(documents[number]) > space:
            break
        chosen.append(number)
        sizes.append(len(documents[number]))
    end = len(frame.line_break)

    def rest(length: int, count: int) -> int:
        return length - request.length + space - sum(sizes[:count]) - head - end

    count = next((n for n in range(len(chosen), len(own) - 1, -1) if _fills(frame, rest(request.length, n))), None)
    if count is None or len(chosen) < len(own):
        need = sum(len(documents.get(n) or frame.encode.plain(f"Document:\n{data.documents[n]}\n")) for n in own)
        beyond = space - need - head - end - request.length
        raise too_short(request, lambda longer: _fills(frame, longer.length + beyond))
    order = chosen[:count]
    padding = rest(request.length, count)
    filling = [*frame.encode("Document:\n"), *frame.filler.text(rng, padding).take(padding), *frame.line_break]
    parts = [documents[number] for number in order] + [tuple(filling)]
    places = list(range(len(parts)))
    rng.shuffle(places)
    ids, position = list(opening), None
    for place in places:
        # Where the answer is put together from several documents there is no one depth.
        if place == 0 and len(own) == 1:
            position = len(ids)
        ids += parts[place]
    depth = None
    if position is not None:
        depth = (position - len(opening)) * request.strata // (len(ids) - len(opening))
    return Prompt(
        task=request.task,
        context=tuple(ids),
        questions=(Question(closing),),
        references=references,
        length=request.length,
        depth=depth,
        strata=request.strata,
        seed=request.seed,
        position=position,
        haystack=(len(opening), len(ids)),
        room=ROOM,
        match="any",
    )


def _fills(frame: Frame, tokens: int) -> bool:
    return tokens > 0 and frame.filler.fits(tokens)


def _read(request: Request) -> _Set:
    found = read_data(request.data, task=request.task, what=_WHAT)
    try:
        made = _squad(found["data"]) if isinstance(found, dict) else _hotpot(found)
    except (KeyError, TypeError, ValueError) as error:
        raise wrong_rows(request.data, task=request.task, expected=_EXPECTED) from error
    if not made.questions:
        raise wrong_rows(request.data, task=request.task, expected=_EXPECTED)
    return made


def _squad(articles: list[dict[str, Any]]) -> _Set:
    texts = sorted({p["context"] for article in articles for p in article["paragraphs"]})
    number = {text: n for n, text in enumerate(texts)}
    questions: list[_Question] = []
    for article in articles:
        every = [number[p["context"]] for p in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = number[paragraph["context"]]
            related = tuple(n for n in dict.fromkeys(every) if n != own)
            for asked in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in asked["answers"])
                if not asked.get("is_impossible", False) and answers:
                    questions.append((asked["question"], answers, (own,), related))
    return _Set(texts, questions)


def _hotpot(rows: list[dict[str, Any]]) -> _Set:
    def text(title: str, sentences: list[str]) -> str:
        return f"{title}\n{''.join(sentences)}"

    texts = sorted({text(*entry) for row in rows for entry in row["context"]})
    number = {entry: n for n, entry in enumerate(texts)}
    questions: list[_Question] = []
    for row in rows:
        own = tuple(dict.fromkeys(number[text(*entry)] for entry in row["context"]))
        questions.append((row["question"], (row["answer"],), own, ()))
    return _Set(texts, questions)


TASK = Task(
    name="ruler-qa",
    title="Question answering among documents",
    reference="RULER qa_1 and qa_2 (2404.06654): SQuAD, HotpotQA; the best of the references counts, as there",
    scoring="generated",
    shows="Retrieval of a passage, and reading it.",
    cost="one forward and 32 generated tokens",
    build=_build,
    depth_matters=False,
    data=_WHAT,
)
