"""The source's card: read by the Hub's own rule, kept word for word, and kept once however often it is converted."""

from __future__ import annotations

import re
import time

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxforge.publish.card import read_source_card
from ctxforge.publish.card.source_card import BEGIN, END
from tests.publish.card.builders import card

ODD = st.sampled_from(
    [
        *("---\n", "---", "\n", "\r\n", "\r", "\ufeff", "a: 1\n", "- x\n", "license: mit\n", "license: no\n"),
        *("tags: [a, b]\n", "tags: x\n", "  ", "\t", "# T\n", "text ", "`", "|", "<!--", "-->", "{{ x }}", "{% x %}"),
        *(f"{BEGIN}\n", f"{END}\n", BEGIN, END, "\ud800", "\x00", "é", "&a [*a]", "<<: {a: 1}\n", "a: &x [1]\nb: *x\n"),
        *("? [1]\n: 2\n", "!!int ''\n", "2020-13-45: 1\n", "x: 2020-01-01\n", ".inf: 1\n", "base_model: a/b\n", "🙂"),
    ]
)
CARDS = st.lists(ODD, max_size=14).map("".join) | st.text(max_size=60)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CARDS)
def test_rendering_twice_is_rendering_once(text: str) -> None:
    once = card(source_card_text=text)
    data = once.text.encode()  # whatever was in it can be written
    again = card(source_card_text=data.decode())
    assert again.text == once.text
    assert not again.remarks
    assert once.text.endswith(read_source_card(text).body or f"{END}\n")
    assert ModelCard(once.text).data.library_name == "transformers"
    assert yaml.safe_load(once.text.split("---\n")[1])["base_model_relation"] == "finetune"


@settings(max_examples=300, deadline=None)
@given(CARDS)
def test_the_body_is_kept_word_for_word(text: str) -> None:
    body = read_source_card(text).body
    rest = text.removeprefix("\ufeff").replace("\ud800", "\ufffd")
    found = REGEX_YAML_BLOCK.search(rest)
    rest = rest[found.end() :] if found else rest
    if BEGIN not in rest and (found or not rest.lstrip().startswith("---")):
        assert body == (rest.lstrip("\r\n") if rest.strip() else "")


def test_line_ends_and_marks_of_order_are_no_trouble() -> None:
    made = card(source_card_text="\ufeff---\r\nlicense: mit\r\n---\r\n# T\r\n\r\nbody\r\n")
    assert ModelCard(made.text).data.license == "mit"
    assert made.text.endswith("# T\r\n\r\nbody\r\n")
    # A checkout that turned line ends does not make our part somebody else's.
    turned = made.text.replace("\r\n", "\n").replace("\n", "\r\n")
    assert card(source_card_text=turned).text == made.text


def test_a_conversion_of_a_conversion_keeps_the_first_card_once() -> None:
    source = "---\nlicense: mit\n---\n# First\n\nwords\n"
    first = card("yarn", source_card_text=source).text
    second = card("pi", source_card_text=first).text
    assert second.count("# First") == 1
    assert second.count(BEGIN) == second.count(END) == 1
    assert "**YaRN**" not in second
    assert second == card("pi", source_card_text=source.replace("license: mit", "license: mit\ntags: [yarn]")).text
    # What somebody wrote above our part is theirs.
    edited = first.replace(BEGIN, f"A note of mine.\n\n{BEGIN}")
    assert card("pi", source_card_text=edited).text.endswith(f"{END}\n\nA note of mine.\n\n# First\n\nwords\n")


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("---\na: [\n---\nbody\n", "no sound YAML"),
        ("---\n- a\n---\nbody\n", "no mapping"),
        ("---\na: 1\nbody\n", "no closing ---"),
        ("---\n1: a\n---\nbody\n", "a key that is no text"),
        ("---\nx: &a {b: 1}\ny:\n  <<: *a\n---\nbody\n", "merge keys"),
        ("---\na: !!python/object/apply:os.system ['true']\n---\nbody\n", "no sound YAML"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, remark: str) -> None:
    found = read_source_card(text)
    assert len(found.remarks) == 1
    assert remark in found.remarks[0]
    assert found.body.endswith("body\n")


def test_no_card_and_an_empty_one() -> None:
    for text in (None, "", "---\n---\n", "\n\n", "---\na: 1\n---\n"):
        made = card(source_card_text=text)
        assert made.text.endswith(f"{END}\n")
        assert "## The source's model card" not in made.text
        assert made.remarks == ()


def test_yaml_that_would_grow_is_left_out_quickly() -> None:
    levels = "\n".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 30))
    bomb = f"---\nlicense: mit\nk0: &k0 [x]\n{levels}\nextra_gated_fields: {{a: *k29}}\n---\n"
    deep = f"---\na: {'[' * 60_000}\n---\n"
    steps = "---\n" + "\n".join("  " * i + f"- k{i}:" for i in range(2000)) + "\n---\n"
    start = time.process_time()
    made = card(source_card_text=bomb)
    assert ModelCard(made.text).data.license == "mit"
    assert len(made.text) < 50_000
    assert [line for line in made.remarks if "'extra_gated_fields'" in line]
    for text in (deep, steps, "---\na: " + "1" * 5000 + "\n---\n"):
        read_source_card(text)
    assert time.process_time() - start < 60  # without bounds none of these ends at all


def test_what_comes_before_a_mark_inside_a_line_is_text() -> None:
    body = f"Write {BEGIN} and {END} yourself.\n"
    assert read_source_card(body).body == body
    assert re.search(re.escape(body), card(source_card_text=body).text)
