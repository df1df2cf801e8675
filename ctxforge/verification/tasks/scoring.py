"""What a model scores on prompts.

An answer that is one token sequence is teacher-forced: one forward without a cache over context, question and answer.
Its tokens all being the argmax is exactly what greedy decoding would have to produce, and their mean loss tells models
apart where right-or-wrong on a few prompts cannot. Questions that share a context are branch rows of one forward.
Answers that may come in any order or form are generated, greedily.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ctxforge.verification import retrieval
from ctxforge.verification.branches import Branch, branch_attention, lay_out
from ctxforge.verification.onepass import OnePass, Tick
from ctxforge.verification.tasks.matching import MATCHES
from ctxforge.verification.tasks.types import Prompt, PromptScore, Question

# Of each answer token: loss in nats, and whether it is the argmax.
Judged = tuple[torch.Tensor, torch.Tensor]


def score(
    runner: OnePass,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    branch_rows: bool | None = None,
    tick: Tick | None = None,
) -> list[PromptScore]:
    """Score every prompt, in the order given.

    Args:
        runner: the model.
        tokenizer: its tokenizer, to read generated answers with.
        prompts: of any tasks and lengths.
        branch_rows: whether questions about one context share a forward; None lets a small check decide.
        tick: called with (prompts done, prompts).
    """
    found: dict[int, PromptScore] = {}
    if branch_rows is None:
        shared = any(len(group) > 1 or len(prompts[group[0]].questions) > 1 for group in _groups(prompts))
        branch_rows = shared and retrieval.choose_way(runner) == retrieval.BRANCH_ROWS
    for group in _groups(prompts):
        runner.settle()
        members = [prompts[number] for number in group]
        if members[0].room:
            found[group[0]] = _generated(runner, tokenizer, members[0])
        else:
            found.update(zip(group, _forced(runner, members, branch_rows), strict=True))
        if tick is not None:
            tick(len(found), len(prompts))
    runner.settle()
    return [found[number] for number in range(len(prompts))]


def greedy(model: Any, ids: Sequence[int], count: int) -> list[int]:
    """The next `count` tokens by argmax, fewer where the model ends its answer, with a KV cache.

    Written out because `generate` heeds the checkpoint's own settings, among them penalties and sampling.
    """
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    stop = model.generation_config.eos_token_id if getattr(model, "generation_config", None) else None
    stops = set(stop) if isinstance(stop, (list, tuple)) else {stop}
    limited = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    device = model.device
    found: list[int] = []
    part, past, total = list(ids), None, len(ids)
    with torch.no_grad():
        while len(found) < count:
            output = model(
                input_ids=torch.tensor([part], device=device),
                attention_mask=torch.ones(1, total, dtype=torch.long, device=device),
                position_ids=torch.arange(total - len(part), total, device=device)[None],
                use_cache=True,
                **({name: past} if past is not None else {}),
                **limited,
            )
            token = int(output.logits[0, -1].argmax())
            if token in stops:
                break
            found.append(token)
            part, past, total = [token], getattr(output, name), total + 1
    return found


def _groups(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Numbers of prompts whose contexts begin alike, the longest of them last; generated ones are alone."""
    alike: dict[tuple[str, int, int], list[int]] = {}
    for number, prompt in enumerate(prompts):
        if prompt.room:
            yield [number]
        else:
            alike.setdefault((prompt.task, prompt.length, prompt.seed), []).append(number)
    for members in alike.values():
        rest = sorted(members, key=lambda n: len(prompts[n].context))
        while rest:
            longest = prompts[rest[-1]].context
            group = [n for n in rest if prompts[n].context == longest[: len(prompts[n].context)]]
            rest = [n for n in rest if n not in group]
            yield group


def _forced(runner: OnePass, prompts: Sequence[Prompt], branch_rows: bool) -> list[PromptScore]:
    asked = [(prompt, question) for prompt in prompts for question in prompt.questions]
    if branch_rows and len(asked) > 1:
        judged = _by_branches(runner, prompts[-1].context, asked)
    else:
        judged = [_separately(runner, prompt.context, question) for prompt, question in asked]
    scores, at = [], 0
    for prompt in prompts:
        mine = judged[at : at + len(prompt.questions)]
        at += len(prompt.questions)
        losses = torch.cat([losses for losses, _ in mine])
        right = [
            bool(part.all())
            for question, (_, hits) in zip(prompt.questions, mine, strict=True)
            for part in torch.split(hits, [len(piece) for piece in question.answers])
        ]
        scores.append(
            PromptScore(
                task=prompt.task,
                seed=prompt.seed,
                depth=prompt.depth,
                length=prompt.length,
                nll=float(losses.double().mean()),
                exact=all(right),
                recall=sum(right) / len(right),
            )
        )
    return scores


def _separately(runner: OnePass, context: Sequence[int], question: Question) -> Judged:
    answer = question.answer_ids
    ids = [*context, *question.ids, *answer[:-1]]
    labels = torch.tensor(answer, device=runner.device)
    with torch.no_grad():
        if runner.head_kind == "full":
            tokens = torch.tensor([ids], device=runner.device)
            logits = (
                runner.model(
                    input_ids=tokens,
                    position_ids=torch.arange(len(ids), device=runner.device)[None],
                    attention_mask=torch.ones_like(tokens),
                    use_cache=False,
                )
                .logits[0, -len(answer) :]
                .float()
            )
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            return losses.cpu(), (logits.argmax(-1) == labels).cpu()
        rows, output_class = runner.hidden(ids)
        losses, hits = runner.head.losses(rows[-len(answer) :], labels, output_class)
    return losses.cpu(), hits.cpu()


def _by_branches(runner: OnePass, context: Sequence[int], asked: Sequence[tuple[Prompt, Question]]) -> list[Judged]:
    branches = [Branch((*q.ids, *q.answer_ids[:-1]), len(prompt.context)) for prompt, q in asked]
    layout = lay_out(context, branches, runner.device)
    with branch_attention(runner.model, layout):
        hidden, output_class = runner.hidden(layout.ids, layout.positions)
    rows: list[int] = []
    labels: list[int] = []
    for first, (_, question) in zip(layout.first_rows, asked, strict=True):
        # The row before an answer token predicts it.
        start = first + len(question.ids) - 1
        rows += range(start, start + len(question.answer_ids))
        labels += question.answer_ids
    with torch.no_grad():
        losses, hits = runner.head.losses(
            hidden[torch.tensor(rows, device=runner.device)], torch.tensor(labels, device=runner.device), output_class
        )
    sizes = [len(question.answer_ids) for _, question in asked]
    return list(zip(torch.split(losses.cpu(), sizes), torch.split(hits.cpu(), sizes), strict=True))


def _generated(runner: OnePass, tokenizer: Any, prompt: Prompt) -> PromptScore:
    made = greedy(runner.model, prompt.ids, prompt.room)
    output = tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    exact, recall = MATCHES[prompt.match](output, prompt.references)
    return PromptScore(
        task=prompt.task,
        seed=prompt.seed,
        depth=prompt.depth,
        length=prompt.length,
        nll=None,
        exact=exact,
        recall=recall,
        output=output,
    )
