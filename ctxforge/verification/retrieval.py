"""The retrieval grid: is a fact at this depth of a context of this length found again?

Every cell is teacher-forced: the model reads the question and the answer at the end of the context, and the loss of
the answer's tokens is taken. Their argmax all being right is exactly what greedy decoding would have to produce, and
the mean loss tells models apart where right-or-wrong on a few needles cannot.

Three ways of computing the same numbers:
- "branch rows": one forward a haystack for the whole grid (`branches.py`);
- "branch rows a length": one forward a length, for models whose RoPE depends on the input's length;
- "cached prefill": for models that take no attention function, the context is read once a length into a cache, and
  each question is answered from a copy of it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ctxforge.errors import UnsupportedError
from ctxforge.verification.branches import Branch, branch_attention, lay_out
from ctxforge.verification.needles import Cell, Haystack, Needle
from ctxforge.verification.onepass import OnePass, Tick
from ctxforge.verification.scored import ScoredAnswer

BRANCH_ROWS = "branch rows"
BRANCH_ROWS_PER_LENGTH = "branch rows a length"
CACHED_PREFILL = "cached prefill"
_CHECK_TOKENS = 96
_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass(frozen=True)
class Answer:
    """How one cell's answer was predicted: mean loss of its tokens in nats, and whether all are the argmax."""

    cell: Cell
    nll: float
    exact: bool

    def scored(self, seed: int) -> ScoredAnswer:
        """The unit of statistics that an answer of haystack `seed` is."""
        return ScoredAnswer(seed, self.cell.length, self.cell.stratum, self.cell.strata, self.nll, self.exact)


def choose_way(runner: OnePass) -> str:
    """Which of the three ways this model takes; branch rows must first agree with separate forwards on a small case."""
    if runner.head_kind != "sliced" or not _branches_agree(runner):
        return CACHED_PREFILL
    return BRANCH_ROWS if runner.prefix_invariant else BRANCH_ROWS_PER_LENGTH


def answers(
    runner: OnePass, haystack: Haystack, way: str, *, longest: int | None = None, tick: Tick | None = None
) -> list[Answer]:
    """Score every cell of `haystack` whose length is at most `longest`.

    Args:
        runner: the model.
        haystack: context, needles and cells.
        way: as `choose_way` says.
        longest: leave longer lengths out; None for all.
        tick: progress of each forward, as in `OnePass.hidden`.
    """
    cells = sorted(
        (c for c in haystack.cells if longest is None or c.length <= longest), key=lambda c: (c.length, c.stratum)
    )
    lengths = sorted({cell.length for cell in cells})
    if not cells:
        return []
    if way == BRANCH_ROWS:
        return _by_branches(runner, haystack, cells, tick)
    found: list[Answer] = []
    for length in lengths:
        # dynamic NTK never goes back to the frequencies of a shorter input that is beyond the trained length.
        runner.settle()
        part = [cell for cell in cells if cell.length == length]
        found += (_by_branches if way == BRANCH_ROWS_PER_LENGTH else _by_cache)(runner, haystack, part, tick)
    runner.settle()
    return found


def separate(runner: OnePass, context: Sequence[int], needle: Needle) -> tuple[float, bool]:
    """The same score from a forward of its own over context, question and answer: the reference for the fast ways."""
    ids = [*context, *needle.question, *needle.answer[:-1]]
    rows, output_class = runner.hidden(ids)
    labels = torch.tensor(needle.answer, device=runner.device)
    with torch.no_grad():
        losses, hits = runner.head.losses(rows[-len(needle.answer) :], labels, output_class)
    return float(losses.mean()), bool(hits.all())


def _by_branches(runner: OnePass, haystack: Haystack, cells: Sequence[Cell], tick: Tick | None) -> list[Answer]:
    context = haystack.ids[: max(cell.length for cell in cells)]
    asked = [haystack.needles[cell.needle] for cell in cells]
    branches = [
        Branch((*needle.question, *needle.answer[:-1]), cell.length) for cell, needle in zip(cells, asked, strict=True)
    ]
    layout = lay_out(context, branches, runner.device)
    with branch_attention(runner.model, layout):
        hidden, output_class = runner.hidden(layout.ids, layout.positions, tick)
    # The row before an answer token predicts it, so the last question row predicts the first.
    rows: list[int] = []
    labels: list[int] = []
    for first, needle in zip(layout.first_rows, asked, strict=True):
        start = first + len(needle.question) - 1
        rows += range(start, start + len(needle.answer))
        labels += needle.answer
    with torch.no_grad():
        losses, hits = runner.head.losses(
            hidden[torch.tensor(rows, device=runner.device)], torch.tensor(labels, device=runner.device), output_class
        )
    sizes = [len(needle.answer) for needle in asked]
    return [
        Answer(cell, float(loss.mean()), bool(hit.all()))
        for cell, loss, hit in zip(cells, torch.split(losses, sizes), torch.split(hits, sizes), strict=True)
    ]


def _by_cache(runner: OnePass, haystack: Haystack, cells: Sequence[Cell], tick: Tick | None) -> list[Answer]:
    """All cells of one length from one cached context."""
    length = cells[0].length
    device = runner.device
    found: list[Answer] = []
    with torch.no_grad():
        context = torch.tensor([haystack.ids[:length]], device=device)
        prefill = runner.model(
            input_ids=context,
            attention_mask=torch.ones_like(context),
            position_ids=torch.arange(length, device=device)[None],
            use_cache=True,
            logits_to_keep=1,
        )
        for number, cell in enumerate(cells, 1):
            needle = haystack.needles[cell.needle]
            ids = torch.tensor([[*needle.question, *needle.answer[:-1]]], device=device)
            total = length + ids.shape[1]
            output = runner.model(
                input_ids=ids,
                attention_mask=torch.ones(1, total, dtype=torch.long, device=device),
                position_ids=torch.arange(length, total, device=device)[None],
                # A copy: not every cache can be cut back, and a window's cache forgets.
                **{cache_argument(runner.model): copy.deepcopy(prefill[cache_argument(runner.model)])},
                use_cache=True,
            )
            logits = output.logits[0, -len(needle.answer) :].float()
            labels = torch.tensor(needle.answer, device=device)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            found.append(Answer(cell, float(loss), bool((logits.argmax(-1) == labels).all())))
            if tick is not None:
                tick(number, len(cells))
    return found


def cache_argument(model: Any) -> str:
    """How this model calls its cache: newer transformers say `cache` where older ones said `past_key_values`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _branches_agree(runner: OnePass) -> bool:
    """Compare branch rows with separate forwards on a context of a few dozen tokens."""
    size = runner.model.get_input_embeddings().weight.shape[0]
    ids = tuple((11 + 7907 * i) % size for i in range(_CHECK_TOKENS))
    needles = [
        Needle(
            "",
            "",
            tuple((3 + 131 * (i + k)) % size for i in range(5)),
            tuple((5 + 37 * (i + k)) % size for i in range(3)),
        )
        for k in range(3)
    ]
    cells = [Cell(n, 0, 1, k) for k, n in enumerate((_CHECK_TOKENS // 2, _CHECK_TOKENS, _CHECK_TOKENS))]
    haystack = Haystack(ids, tuple(needles), (0, 0, 0), tuple(cells))
    limit = _CHECK_TOLERANCE.get(runner.model.dtype, 1e-3)
    way = BRANCH_ROWS if runner.prefix_invariant else BRANCH_ROWS_PER_LENGTH
    try:
        ours = answers(runner, haystack, way)
    # A model may refuse in its own way whatever is unusual here; the cached way remains.
    except (UnsupportedError, TypeError, AttributeError, ValueError, RuntimeError, KeyError, IndexError):
        return False
    for answer in ours:
        runner.settle()
        alone, _ = separate(runner, ids[: answer.cell.length], needles[answer.cell.needle])
        if not abs(answer.nll - alone) <= limit:
            return False
    runner.settle()
    return True
