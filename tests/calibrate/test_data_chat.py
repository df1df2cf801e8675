"""Chats: rendered by the tokenizer's template, with the assistant's own tokens known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxforge.calibrate.data import (
    Filters,
    Piece,
    Stage,
    TokenCache,
    make_mixture,
    open_or_build,
    parse_source,
    plan_batch,
    read_row,
    whole,
)
from ctxforge.calibrate.data.chat import render
from ctxforge.errors import UsageError
from tests.calibrate.data_builders import tokenizer

PLAIN = (
    "<s>{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# As reasoning models do: what stands before `#` is removed from all answers but the last.
FORGETFUL = (
    "{% for m in messages %}[{{ m.role }}]\n{% if loop.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('#') | last }}{% endif %};\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "  Ünï?  "},
    {"role": "assistant", "content": " Já 漢. "},
    {"role": "user", "content": "Já 漢."},
    {"role": "assistant", "content": "Já 漢."},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))


def templated(template: str) -> Any:
    changed = copy.deepcopy(tokenizer())
    changed.chat_template = template
    return changed


def build(tmp_path: Path, chats: list[Any], using: Any, **more: Any) -> TokenCache:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return open_or_build(parse_source(str(path)), using, **more)


def said(cache: TokenCache, index: int) -> list[bytes]:
    ids = cache.document(index).astype(np.int64)
    spans = cache.assistant_spans(index)
    assert spans is not None
    names = {256: b"<s>", 257: b"</s>"}
    return [b"".join(names.get(int(i), bytes([int(i) % 256])) for i in ids[start:stop]) for start, stop in spans]


def test_the_assistants_turns_with_their_end(tmp_path: Path) -> None:
    using = templated(PLAIN)
    cache = build(tmp_path, [CHAT, CHAT[1:3], CHAT[:2]], using)
    answer = "Já 漢.</s>\n".encode()
    assert [said(cache, i) for i in range(3)] == [[answer, answer], [answer], []]
    for index, chat in enumerate((CHAT, CHAT[1:3], CHAT[:2])):
        text = using.apply_chat_template(chat, tokenize=False)
        assert cache.document(index).tolist() == using(text, add_special_tokens=False)["input_ids"]
    assert cache.header.chat
    assert (cache.header.prefix, cache.header.end) == ((), None)  # the template has its own
    row = read_row([cache], [Piece(0, 0, 30, int(cache.lengths[0])), Piece(0, 1, 0, int(cache.lengths[1]))])
    first = cache.assistant_spans(0)
    assert first is not None
    assert row.learn[: int(cache.lengths[0]) - 30].sum() == sum(max(0, b - max(a, 31)) for a, b in first)
    assert row.learn.sum() < len(row.learn)


def test_turns_that_the_template_rewrites() -> None:
    chat = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "why#one"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "why#two"},
    ]
    text, spans = render(templated(FORGETFUL), chat, "x")
    assert text == "[user]\nq;\n[assistant]\none;\n[user]\nr;\n[assistant]\nwhy#two;\n"
    assert spans is None  # the first answer is not in the text as it was given
    chat[1]["content"] = "one"
    _, spans = render(templated(FORGETFUL), chat, "x")
    assert spans is not None
    assert [text[a:b] for a, b in spans] == ["one;\n", "why#two;\n"]


def test_chats_whose_answers_are_lost_are_counted(tmp_path: Path) -> None:
    bad = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a#b"}, {"role": "user", "content": "r"}]
    cache = build(tmp_path, [bad, CHAT[1:3], []], templated(FORGETFUL))
    assert len(cache) == 1
    assert cache.header.dropped == {"chat with an answer that its template leaves out": 1, "empty": 1}


def test_the_template_decides_about_the_cache(tmp_path: Path) -> None:
    assert build(tmp_path, [CHAT], templated(PLAIN)).folder != build(tmp_path, [CHAT], templated(FORGETFUL)).folder


@pytest.mark.parametrize(
    ("chats", "template", "words"),
    [
        ([CHAT], None, "has no chat template"),
        ([CHAT], "{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ([CHAT], "{{ messages.x.y }}", "refuses chats.jsonl:1"),
        ([CHAT, "text"], PLAIN, "mixes text and chats: chats.jsonl:2"),
        ([[{"content": "no role"}]], PLAIN, "holds a list, neither text nor messages"),
    ],
)
def test_bad_chats(tmp_path: Path, chats: list[Any], template: str | None, words: str) -> None:
    using = tokenizer() if template is None else templated(template)
    with pytest.raises(UsageError) as caught:
        build(tmp_path, chats, using)
    assert words in caught.value.cause


def test_chats_are_drawn_like_text(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"{i}" * 40}, {"role": "assistant", "content": "yes" * 20}] for i in range(9)]
    cache = build(tmp_path, chats, templated(PLAIN), filters=Filters(min_tokens=50))
    mixture = make_mixture([whole(cache)], [Stage(1, 100, 20)], short_share=0.5)
    for row in plan_batch(mixture, 0, 0).rows:
        found = read_row([cache], row.pieces)
        for segment, piece in enumerate(row.pieces):
            learnt = found.ids[(found.segments == segment) & found.learn]
            assert set(learnt.tolist()) <= {*b"yes\n", 257}
            assert len(learnt) == sum(
                max(0, min(piece.stop, b) - max(piece.start + 1, a))
                for a, b in cache.assistant_spans(piece.document)  # type: ignore[union-attr]
            )


@pytest.mark.real_model
def test_smollm2(tmp_path: Path) -> None:
    """A byte-level BPE tokenizer with a template that puts a system turn before a chat without one."""
    from transformers import AutoTokenizer

    from tests import assets

    using = AutoTokenizer.from_pretrained(assets.smollm2_folder())
    cache = build(tmp_path, [CHAT, CHAT[1:3]], using)
    for index, chat in enumerate((CHAT, CHAT[1:3])):
        text = using.apply_chat_template(chat, tokenize=False)
        ids = cache.document(index).tolist()
        assert ids == using(text, add_special_tokens=False)["input_ids"]
        spans = cache.assistant_spans(index)
        assert spans is not None
        answers = [one["content"] for one in chat if one["role"] == "assistant"]
        assert [using.decode(ids[a:b]) for a, b in spans] == [f"{one}<|im_end|>\n" for one in answers]


@pytest.mark.real_model
def test_smollm2_text_is_tokenised_as_one_by_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tests import assets

    using = AutoTokenizer.from_pretrained(assets.smollm2_folder())
    novel = assets.emma_text()
    texts = [novel[i : i + 3000 + i % 977] for i in range(0, 300_000, 3000)]
    path = tmp_path / "emma.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
    cache = open_or_build(parse_source(str(path)), using)
    for index, text in enumerate(texts):
        expected = [*using(text, add_special_tokens=False)["input_ids"], using.eos_token_id]
        assert cache.document(index).tolist() == expected
    assert cache.tokens.dtype == np.uint16  # 49 152 ids
