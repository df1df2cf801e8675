"""Scores of prompts: equal to real greedy generation, sharp where the model retrieves, and bad where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ctxforge.sources import bundled_model
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.tasks import Frame, Prompt, build, build_all, greedy, score
from ctxforge.verification.tasks.matching import MATCHES
from tests.verification.task_tokenizers import bytes_tokenizer

LENGTH = 512


@pytest.fixture(scope="module")
def model() -> Any:
    found = AutoModelForCausalLM.from_pretrained(str(Path(bundled_model())), dtype=torch.float32)
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def runner(model: Any) -> OnePass:
    return OnePass(model, longest=1024)


@pytest.fixture(scope="module")
def frame() -> Frame:
    return Frame(bytes_tokenizer())


def test_exact_is_what_generation_gives(model: Any, runner: OnePass, frame: Frame) -> None:
    """Prompts that are answered and prompts that are not, against transformers' own `generate`."""
    prompts = [
        *(build("passkey", frame, length, depth=d, seed=3) for length in (LENGTH, 900) for d in (0, 4, 9)),
        *(build("multi-key", frame, LENGTH, depth=d, seed=1) for d in (1, 8)),
        *(build("lines", frame, LENGTH, depth=d, seed=1) for d in (0, 5)),
        build("first-sentence", frame, LENGTH),
        build("copy", frame, 300, depth=9),
    ]
    found = score(runner, bytes_tokenizer(), prompts)
    for prompt, scored in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt.ids])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(prompt.answer_ids), do_sample=False
        )
        assert scored.exact == (made[0, ids.shape[1] :].tolist() == list(prompt.answer_ids))
    assert {scored.exact for scored in found} == {True, False}


def test_the_loss_is_that_of_a_plain_forward(model: Any, runner: OnePass, frame: Frame) -> None:
    prompts = [build(name, frame, LENGTH, depth=1) for name in ("passkey", "lines", "variable-tracking", "copy")]
    for prompt, scored in zip(prompts, score(runner, bytes_tokenizer(), prompts), strict=True):
        answer = prompt.answer_ids
        logits = model(torch.tensor([[*prompt.ids, *answer]])).logits[0, -len(answer) - 1 : -1].double()
        losses = -torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]
        assert scored.nll == pytest.approx(float(losses.mean()), abs=1e-4)
        hits = logits.argmax(-1) == torch.tensor(answer)
        pieces = torch.split(hits, [len(piece) for piece in prompt.questions[0].answers])
        assert scored.recall == pytest.approx(sum(bool(p.all()) for p in pieces) / len(pieces))


def test_shared_contexts_give_the_scores_of_separate_forwards(
    runner: OnePass, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [
        *build_all("kv-grid", frame, lengths=[LENGTH], seeds=2, strata=5),
        *build_all("multi-query", frame, lengths=[LENGTH, 700], seeds=1),
    ]
    forwards: list[int] = []
    hidden = OnePass.hidden

    def counted(self: OnePass, ids: Any, *rest: Any, **more: Any) -> Any:
        forwards.append(len(ids))
        return hidden(self, ids, *rest, **more)

    monkeypatch.setattr(OnePass, "hidden", counted)
    together = score(runner, bytes_tokenizer(), prompts, branch_rows=True)
    few = sum(n >= LENGTH - 60 for n in forwards)
    forwards.clear()
    apart = score(runner, bytes_tokenizer(), prompts, branch_rows=False)
    many = sum(n >= LENGTH - 60 for n in forwards)
    assert (few, many) == (4, 18)
    assert [s.exact for s in together] == [s.exact for s in apart]
    assert [s.nll for s in together] == pytest.approx([s.nll for s in apart], abs=1e-4)
    assert [(s.task, s.seed, s.depth, s.length) for s in together] == [
        (p.task, p.seed, p.depth, p.length) for p in prompts
    ]


def test_a_model_whose_head_cannot_be_sliced_scores_the_same(runner: OnePass, frame: Frame) -> None:
    prompts = [build("passkey", frame, LENGTH, depth=2), build("multi-query", frame, LENGTH)]
    expected = score(runner, bytes_tokenizer(), prompts)
    kind, runner.head_kind = runner.head_kind, "full"
    try:
        found = score(runner, bytes_tokenizer(), prompts)
    finally:
        runner.head_kind = kind
    assert [s.nll for s in found] == pytest.approx([s.nll for s in expected], abs=1e-4)
    assert [s.exact for s in found] == [s.exact for s in expected]


def test_the_bundled_model_finds_needles_inside_its_length(runner: OnePass, frame: Frame) -> None:
    """Five digits by chance: 1e-5, and 2.3 nats a digit."""
    for name, fewest in (("passkey", 18), ("multi-key", 18), ("kv-grid", 17)):
        found = score(runner, bytes_tokenizer(), list(build_all(name, frame, lengths=[LENGTH], seeds=4, strata=5)))
        assert len(found) == 20
        assert sum(s.exact for s in found) >= fewest, name
        assert sum(s.nll or 0.0 for s in found) / 20 < 0.15, name


def test_without_the_needle_the_answer_is_not_found(runner: OnePass, frame: Frame) -> None:
    """Negative control: the same prompts with other digits in the needle, or with filler in its place."""
    prompts = [build("passkey", frame, LENGTH, depth=d, seed=s, strata=5) for d in range(5) for s in range(2)]
    needle = len(" The pass key is 12345. Remember it.")

    def removed(prompt: Prompt) -> Prompt:
        at = prompt.position
        assert at is not None
        assert bytes_tokenizer().decode(list(prompt.context[at : at + needle])).startswith(" The pass key is")
        other = prompt.context[:at] or prompt.context[at + needle :]
        filler = (other * needle)[:needle]
        return replace(prompt, context=prompt.context[:at] + filler + prompt.context[at + needle :])

    right = score(runner, bytes_tokenizer(), prompts)
    without = score(runner, bytes_tokenizer(), [removed(p) for p in prompts])
    assert sum(s.exact for s in right) >= 9
    assert not any(s.exact for s in without)
    worse = [(b.nll or 0.0) - (a.nll or 0.0) for a, b in zip(right, without, strict=True)]
    assert min(worse) > 1.0


def test_greedy_is_argmax_without_a_cache(model: Any, frame: Frame) -> None:
    prompt = build("multi-value", frame, LENGTH)
    found = greedy(model, prompt.ids, 12)
    ids = list(prompt.ids)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found == ids[len(prompt.ids) :]


def test_greedy_stops_where_the_model_does(model: Any, frame: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = build("multi-value", frame, LENGTH)
    whole = greedy(model, prompt.ids, 12)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [whole[5]])
    assert greedy(model, prompt.ids, 12) == whole[: whole.index(whole[5])]


def test_generated_answers_are_read_out_and_matched(
    model: Any, runner: OnePass, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model says of itself, put in as references: a generated prompt must then be found in full."""
    prompt = build("multi-value", frame, LENGTH)
    (first,) = score(runner, bytes_tokenizer(), [prompt])
    assert first.nll is None
    assert first.output == bytes_tokenizer().decode(greedy(model, prompt.ids, prompt.room))
    words = first.output.split()
    (again,) = score(runner, bytes_tokenizer(), [replace(prompt, references=(words[0], words[1].upper()))])
    assert (again.exact, again.recall) == (True, 1.0)
    (half,) = score(runner, bytes_tokenizer(), [replace(prompt, references=(words[0], "nowhere"))])
    assert (half.exact, half.recall) == (False, 0.5)


def test_matches() -> None:
    assert MATCHES["all"]("b, A and c", ["a", "B"]) == (True, 1.0)
    assert MATCHES["all"]("only a", ["a", "zz"]) == (False, 0.5)
    # NVIDIA's maximum over paraphrases, where lm-eval's average would give a third.
    assert MATCHES["any"]("in the Denver area", ["Denver", "Denver, Colorado", "Colorado"]) == (True, 1.0)
    assert MATCHES["any"]("nothing", ["Denver"]) == (False, 0.0)
    assert MATCHES["presence"]("It was 1,234.", [" 1,234 "]) == (True, 1.0)
    assert MATCHES["presence"]("it was paris", ["Paris"]) == (False, 0.0)
