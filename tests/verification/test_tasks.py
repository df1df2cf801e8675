"""Prompts of tasks: exact lengths, one answer in the context, depths, determinism, for tokenizers of several kinds."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.verification.tasks import ALIASES, TASKS, Frame, build, build_all, find_task
from ctxforge.verification.tasks.copy_tokens import BLOCK, copy_at, sweep
from ctxforge.verification.tasks.grammar import sentences, templates, vocabulary
from tests.verification.task_tokenizers import KINDS, UNSPELLABLE, bytes_tokenizer, word_level

SYNTHETIC = [name for name, task in TASKS.items() if not task.data]
DEPTHS = [name for name in SYNTHETIC if TASKS[name].depth_matters]
FORCED = [name for name in SYNTHETIC if TASKS[name].scoring == "teacher-forced"]
SHORTEST = re.compile(r"is (\d+)\.$")
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def frame(kind: str) -> Frame:
    return Frame(KINDS[kind]())


def squeezed(text: str) -> str:
    return "".join(text.split())


def occurrences(ids: tuple[int, ...], part: tuple[int, ...]) -> int:
    return sum(ids[n : n + len(part)] == part for n in range(len(ids) - len(part) + 1))


def possible(kind: str) -> list[str]:
    return [name for name in SYNTHETIC if name not in UNSPELLABLE.get(kind, set())]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_lengths_are_exact_or_refused_with_one_that_works(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(KINDS)))
    name = data.draw(st.sampled_from(possible(kind)))
    length, seed = data.draw(st.integers(1, 3500)), data.draw(st.integers(0, 50))
    depth = data.draw(st.integers(0, 9))
    try:
        prompt = build(name, frame(kind), length, depth=depth, seed=seed)
    except UsageError as refused:
        error = refused
    else:
        error = None
    if error is not None:
        found = SHORTEST.search(error.remedy)
        assert f"{length} tokens are too few" in error.cause
        if found is None:
            assert name == "common-words", "only its frequencies change with the length"
            return
        assert int(found[1]) > length
        length = int(found[1])
        prompt = build(name, frame(kind), length, depth=depth, seed=seed)
    longest = max(len(prompt.context) + len(q.ids) + len(q.answer_ids) for q in prompt.questions)
    assert longest + prompt.room == length == prompt.length
    assert (prompt.seed, prompt.depth) == (seed, depth if TASKS[name].depth_matters else None)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_occur_once_and_decode_to_their_text(kind: str) -> None:
    for name, seed in itertools.product(possible(kind), range(3)):
        prompt = build(name, frame(kind), 2600, depth=3 * seed, seed=seed)
        text = squeezed(frame(kind).encode.decode(prompt.context))
        if name in ("passkey", "multi-key", "multi-value", "multi-query", "uuid", "lines", "kv-grid", "first-sentence"):
            assert [text.count(squeezed(reference)) for reference in prompt.references] == [1] * len(prompt.references)
        if prompt.room:
            assert prompt.match == "all"
            continue
        answers = [frame(kind).encode.decode(question.answer_ids) for question in prompt.questions]
        assert squeezed(" ".join(prompt.references)) in squeezed(" ".join(answers))
        if name in ("passkey", "multi-key", "multi-query", "uuid", "lines", "kv-grid", "first-sentence", "copy"):
            # In token ids too: what is asked for is what was planted, not another spelling of it.
            for question in prompt.questions:
                assert occurrences(prompt.context, question.answer_ids) == 1


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("kind", ["bytes", "SentencePiece-like"])
def test_needles_lie_in_their_stratum(kind: str, name: str) -> None:
    for depth, seed in itertools.product(range(10), range(3)):
        prompt = build(name, frame(kind), 4000, depth=depth, seed=seed)
        low, high = prompt.haystack
        answer = prompt.answer_ids
        assert prompt.position is not None
        where = next(n for n in range(prompt.position, high) if prompt.context[n : n + len(answer)] == answer)
        assert where - prompt.position < 70, "the position is that of the needle"
        # The needle is wholly inside, so its stratum is one of the places where it can begin.
        size = where - prompt.position + len(answer) + len(". Remember it.")
        assert depth / 10 <= (prompt.position - low + size) / (high - low) + 1e-9
        assert (prompt.position - low) / (high - low) <= (depth + 1) / 10 + 1e-9


def test_shuffled_depth_labels_are_noticed() -> None:
    """Negative control: a reader that sees only the last third answers the deep strata, and labels must show it."""
    prompts = list(build_all("passkey", frame("bytes"), lengths=[3000], seeds=8))
    seen = [int(prompt.position is not None and prompt.position > 2000) for prompt in prompts]

    def by_label(labels: list[int]) -> list[float]:
        rate = [[hit for hit, label in zip(seen, labels, strict=True) if label == d] for d in range(10)]
        return [sum(hits) / len(hits) for hits in rate]

    labels = [prompt.depth or 0 for prompt in prompts]
    profile = by_label(labels)
    assert profile[:6] == [0] * 6
    assert profile[7:] == [1] * 3
    shuffled = list(labels)
    random.Random(1).shuffle(shuffled)
    wrong = by_label(shuffled)
    assert max(wrong[:6]) > 0
    assert min(wrong[7:]) < 1


def digest() -> str:
    found = hashlib.sha256()
    for name in SYNTHETIC:
        for kind in ("bytes", "SentencePiece-like"):
            prompt = build(name, frame(kind), 2600, depth=4, seed=7)
            found.update(json.dumps([prompt.context, [q.ids + q.answer_ids for q in prompt.questions]]).encode())
    return found.hexdigest()


def test_another_process_builds_the_same_ids() -> None:
    code = "from tests.verification.test_tasks import digest; print(digest())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PATH": "", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == digest()


def test_what_was_built_before_changes_nothing() -> None:
    used = Frame(bytes_tokenizer())
    for length in (90_000, 700, 3000):
        build("passkey", used, length)
    for name in SYNTHETIC:
        assert build(name, used, 2600, depth=2, seed=1) == build(name, Frame(bytes_tokenizer()), 2600, depth=2, seed=1)


def test_seeds_depths_and_lengths_differ() -> None:
    for name in SYNTHETIC:
        one = build(name, frame("bytes"), 2600, seed=1)
        assert one.context != build(name, frame("bytes"), 2600, seed=2).context
        if TASKS[name].depth_matters:
            assert one.position != build(name, frame("bytes"), 2600, depth=6, seed=1).position


def test_a_tokenizers_bos_is_kept_and_its_eos_is_not() -> None:
    tokenizer = KINDS["bytes with BOS and EOS"]()
    for name in SYNTHETIC:
        prompt = build(name, frame("bytes with BOS and EOS"), 2600, seed=1)
        ids = [*prompt.ids, *prompt.answer_ids]
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
    assert build("passkey", Frame(tokenizer, bos=False), 600).ids[0] != tokenizer.bos_token_id
    assert build("passkey", Frame(bytes_tokenizer(), bos=True), 600).ids[0] == 256
    with pytest.raises(UsageError, match="no BOS"):
        Frame(word_level(), bos=True)


def test_chat_models_are_asked_through_their_template() -> None:
    tokenizer = KINDS["bytes"]()
    with pytest.raises(UsageError, match="no chat template"):
        Frame(tokenizer, chat=True)
    try:
        tokenizer.chat_template = CHAT
        chat = Frame(tokenizer, chat=True)
        for name in SYNTHETIC:
            prompt = build(name, chat, 3600, depth=5, seed=1)
            text = tokenizer.decode(list(prompt.ids))
            assert prompt.tokens == 3600
            assert text.startswith("<|user|>\n")
            assert text.count("<|assistant|>\n") == 1
            # The answer's beginning is put into the model's mouth.
            lead = text.split("<|assistant|>\n")[1]
            assert lead
            if name == "passkey":
                assert lead == "The pass key is"
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(UnsupportedError, match="chat template fails"):
            Frame(tokenizer, chat=True)
        tokenizer.chat_template = "nothing"
        with pytest.raises(UnsupportedError, match="does not repeat"):
            Frame(tokenizer, chat=True)
    finally:
        tokenizer.chat_template = None


def test_a_tokenizer_that_cannot_spell_a_task_is_refused() -> None:
    for name in UNSPELLABLE["words"]:
        with pytest.raises(UnsupportedError, match="would mean nothing"):
            build(name, Frame(word_level()), 2600)

    class Lossy:
        bos_token_id = None
        backend_tokenizer = None

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            return {"input_ids": [[1] * len(t) for t in texts] if isinstance(texts, list) else [1] * len(texts)}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "?" * len(ids)

    with pytest.raises(UnsupportedError, match="would mean nothing"):
        build("passkey", Lossy(), 600)


def test_pieces_are_those_of_running_text() -> None:
    """The ids of a whole prompt are those that the tokenizer gives its text, where it puts nothing of its own in it."""
    for kind in ("bytes", "SentencePiece-like"):
        for name in ("passkey", "multi-key", "multi-query", "first-sentence"):
            prompt = build(name, frame(kind), 1500, depth=5, seed=3)
            start = len(frame(kind).before)
            ids = [*prompt.context, *prompt.questions[0].ids, *prompt.answer_ids]
            text = frame(kind).encode.decode(ids[start:]).strip()
            again = KINDS[kind]()(text if kind != "bytes" else f" {text}", add_special_tokens=False)["input_ids"]
            assert again == ids[start:]


def test_no_sentence_of_a_haystack_comes_twice() -> None:
    for kind, length in (("bytes", 40_000), ("SentencePiece-like", 60_000)):
        prompt = build("multi-key", frame(kind), length, depth=5, seed=2)
        found = [s.strip() for s in frame(kind).encode.decode(prompt.context).split(".")]
        repeated = [text for text, count in Counter(found).items() if text and count > 1]
        assert repeated == []


def test_the_grammar_has_every_slot_and_five_hundred_words() -> None:
    slots = set(re.findall(r"\{(\w+)\}", " ".join(templates())))
    assert slots == set(vocabulary())
    assert len({word for words in vocabulary().values() for word in words}) >= 500
    made = list(itertools.islice(sentences(), 5000))
    assert len(set(made)) == 5000
    assert all(re.fullmatch(r" [A-Z][A-Za-z, ]+\.", text) for text in made)


def test_common_words_have_the_published_frequencies() -> None:
    prompt = build("common-words", frame("bytes"), 12_000, seed=1)
    text = frame("bytes").encode.decode(prompt.context[prompt.haystack[0] :])
    entries = re.findall(r" (\d+)\. ([a-z]+)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    counts = Counter(word for _, word in entries)
    assert {word for word, count in counts.items() if count == 30} == set(prompt.references)
    rest = sorted(count for count in counts.values() if count != 30)
    assert set(rest[1:]) == {3}, "all but the last word come three times"
    short = build("common-words", frame("SentencePiece-like"), 2000, seed=1)
    text = frame("SentencePiece-like").encode.decode(short.context[short.haystack[0] :])
    counts = Counter(re.findall(r"\d+\. ([a-z]+)", text))
    assert {word for word, count in counts.items() if count == 6} == set(short.references)
    assert {count for count in counts.values() if count != 6} == {1}


def test_frequent_words_follow_zipf() -> None:
    prompt = build("frequent-words", frame("bytes"), 8192, seed=1)
    text = frame("bytes").encode.decode(prompt.context[prompt.haystack[0] :])
    counts = Counter(text.split())
    ranked = counts.most_common()
    assert ranked[0][0] == "..."
    assert [word for word, _ in ranked[1:4]] == list(prompt.references)
    # zeta(2) = pi^2 / 6, so rank k of n words comes n k^-2 / zeta(2) times, rounded down.
    words = next(
        n
        for n in range(1, 8192)
        if [int(n * k**-2 * 6 / math.pi**2) for k in (1, 2, 3, 4)] == [c for _, c in ranked[:4]]
    )
    assert [count for _, count in ranked[:8]] == [int(words * k**-2 * 6 / math.pi**2) for k in range(1, 9)]


def test_variables_form_one_chain_in_order() -> None:
    prompt = build("variable-tracking", frame("bytes"), 3000, seed=1)
    text = frame("bytes").encode.decode(prompt.context[prompt.haystack[0] :])
    found = re.findall(r"VAR ([A-Z]{5}) = (?:VAR ([A-Z]{5})|(\d{5}))\.", text)
    assert [name for name, _, _ in found] == list(prompt.references)
    assert [before for _, before, _ in found] == ["", *prompt.references[:-1]]
    assert len(prompt.questions[0].answers) == 5


def test_copies_come_back_at_their_distance() -> None:
    for distance, offset, prompt in sweep(frame("SentencePiece-like"), distances=[100, 700], offsets=[0, 300, 900]):
        assert prompt.position is not None
        assert offset <= prompt.position <= offset + 8
        again = len(prompt.context)
        assert distance <= again - prompt.position <= distance + 8
        block = prompt.context[prompt.position : prompt.position + BLOCK]
        assert block == prompt.questions[0].ids + prompt.answer_ids
    with pytest.raises(UsageError, match="does not fit"):
        copy_at(frame("bytes"), distance=20, offset=0)


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="there is no task 'paskey'") as error:
        build("paskey", frame("bytes"), 600)
    assert "passkey" in error.value.remedy
    with pytest.raises(UsageError, match="stratum 10"):
        build("passkey", frame("bytes"), 600, depth=10)
    with pytest.raises(UsageError, match="0 tokens cannot"):
        build("passkey", frame("bytes"), 0)
    assert {find_task(alias).name for alias in ALIASES} == set(ALIASES.values())


def test_listing_tasks_needs_no_torch() -> None:
    heavy = "('torch', 'transformers')"
    code = f"import sys, ctxforge.verification.tasks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_task_says_what_it_is_for() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert task.title
        assert task.reference
        assert task.shows.endswith(".")
        assert task.cost
        assert (task.scoring == "generated") == (name not in FORCED and name in TASKS)


@pytest.mark.real_model
@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(SYNTHETIC), length=st.integers(700, 9000), seed=st.integers(0, 9), chat=st.booleans())
def test_smollm2s_tokenizer(name: str, length: int, seed: int, chat: bool) -> None:
    made = _smollm2(chat)
    try:
        prompt = build(name, made, length, depth=seed, seed=seed)
    except UsageError as refused:
        # The chat template takes its share: a list of words needs 760 tokens with it, and the refusal says so.
        assert (name, chat) == ("common-words", True)
        shortest = SHORTEST.search(refused.remedy)
        assert shortest is not None
        length = int(shortest[1])
        assert 700 < length < 800
        prompt = build(name, made, length, depth=seed, seed=seed)
    assert prompt.tokens == length
    if name in ("passkey", "multi-key", "uuid", "lines", "kv-grid"):
        assert occurrences(prompt.context, prompt.answer_ids) == 1


@cache
def _smollm2(chat: bool) -> Frame:
    from transformers import AutoTokenizer

    from tests.assets import smollm2_folder

    return Frame(AutoTokenizer.from_pretrained(smollm2_folder()), chat=chat)
