"""What a task is, what one prompt of it is, and what a model scored on one prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ctxforge.verification.tasks.frame import Frame
    from ctxforge.verification.tasks.request import Request

Scoring = Literal["teacher-forced", "generated"]


@dataclass(frozen=True)
class Question:
    """What follows the context, and the answer that should come next.

    Attributes:
        ids: the question, up to the token before the answer.
        answers: the answer as consecutive pieces, one for every thing that is asked; empty when it is generated.
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The whole answer."""
        return tuple(token for piece in self.answers for token in piece)


@dataclass(frozen=True)
class Prompt:
    """One unit of statistics: a context and one question about it, or several.

    The longest of `context + question + answer` (or + `room` generated tokens) has exactly `length` tokens, or at most
    that many where `exact_length` is False.

    Attributes:
        task: name of the task.
        context: ids in front of every question.
        questions: asked each on its own, never one after the other.
        references: the answers as text; which of them must occur in a generated output, see `match`.
        length: tokens as asked for.
        depth: stratum of the needle that is asked for, 0 ... strata - 1; None where depth has no meaning.
        strata: number of depth strata.
        seed: of words, values and positions.
        position: index in `context` of the first token of the needle that is asked for; None likewise.
        haystack: first and past-the-last index in `context` where needles may lie; depth is measured in it.
        room: tokens that may be generated; 0 for teacher-forced prompts.
        match: how a generated output is scored, a name of `matching.MATCHES`; empty for teacher-forced prompts.
        exact_length: whether the length is met exactly.
    """

    task: str
    context: tuple[int, ...]
    questions: tuple[Question, ...]
    references: tuple[str, ...]
    length: int
    depth: int | None
    strata: int
    seed: int
    position: int | None = None
    haystack: tuple[int, int] = (0, 0)
    room: int = 0
    match: str = ""
    exact_length: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        """Context and first question."""
        return self.context + self.questions[0].ids

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The first question's answer."""
        return self.questions[0].answer_ids

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence that scoring this prompt may need."""
        return len(self.context) + max(len(q.ids) + len(q.answer_ids) for q in self.questions) + self.room


@dataclass(frozen=True)
class PromptScore:
    """How one model answered one prompt; the same (task, seed, depth, length) of two models is the same prompt.

    Attributes:
        task: name of the task.
        seed: of the prompt.
        depth: stratum of the needle; None where depth has no meaning.
        length: tokens.
        nll: mean loss of the answer's tokens in nats; None for generated answers.
        exact: whether greedy decoding gives the whole answer; for generated ones, whether every reference that
            counts was found.
        recall: share of the answers that were found.
        output: what was generated; None for teacher-forced prompts.
    """

    task: str
    seed: int
    depth: int | None
    length: int
    nll: float | None
    exact: bool
    recall: float
    output: str | None = None


@dataclass(frozen=True)
class Task:
    """A kind of prompt.

    Attributes:
        name: as in `--tasks`.
        title: for people.
        reference: where it comes from.
        scoring: how answers are scored.
        shows: what a bad score says about a model.
        cost: of one prompt, in words.
        build: makes a prompt; call `tasks.build` instead.
        depth_matters: whether `depth` selects where the needle lies.
        data: what data set the user must give; empty for tasks that need none.
    """

    name: str
    title: str
    reference: str
    scoring: Scoring
    shows: str
    cost: str
    build: Callable[[Frame, Request], Prompt]
    depth_matters: bool = True
    data: str = ""
