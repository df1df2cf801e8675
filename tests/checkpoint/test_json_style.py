"""JSON is read strictly and written in the style of the file it replaces."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.checkpoint import dump_json_like, parse_json_object
from ctxforge.errors import CtxforgeError, InternalError

VALUE = {"z": 1, "a": [1, 2.5, 1e-05], "n": {"k": None, "b": True}, "e": {}, "text": "é — ß"}


@pytest.mark.parametrize("indent", [None, 0, 1, 2, 4, "\t"])
@pytest.mark.parametrize("tail", ["", "\n", "\n\n"])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_round_trip_is_byte_equal(indent: int | str | None, tail: str, escaped: bool) -> None:
    text = json.dumps(VALUE, indent=indent, ensure_ascii=escaped) + tail
    value, same = parse_json_object(text.encode(), "config.json")
    assert same == text
    assert dump_json_like(text, value) == text.encode()


def test_compact_text_and_windows_line_ends() -> None:
    compact = json.dumps(VALUE, separators=(",", ":"))
    assert dump_json_like(compact, VALUE) == compact.encode()
    windows = json.dumps(VALUE, indent=2).replace("\n", "\r\n") + "\r\n"
    assert dump_json_like(windows, VALUE) == windows.encode()
    for text in ("{}", "{}\n", "{ }", '{"a": 1}', ""):
        assert json.loads(dump_json_like(text, VALUE)) == VALUE


def test_key_order_is_the_values() -> None:
    text = '{\n  "b": 1,\n  "a": 2\n}\n'
    value, _ = parse_json_object(text.encode(), "config.json")
    assert dump_json_like(text, {**value, "c": 3}) == b'{\n  "b": 1,\n  "a": 2,\n  "c": 3\n}\n'


def test_what_json_cannot_say_is_our_own_fault() -> None:
    for value in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(InternalError):
            dump_json_like("{}", value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    with suppress(CtxforgeError):
        parse_json_object(data, "config.json")


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from(list('{}[]",:-+.eE019 \\un\x00\xff')) | st.characters())
    )
)
def test_mutated_configs(edits: list[tuple[int, str]]) -> None:
    text = list(json.dumps(VALUE, indent=1))
    for position, character in edits:
        text[position % len(text)] = character
    with suppress(CtxforgeError):
        value, same = parse_json_object("".join(text).encode("utf-8", "surrogatepass"), "config.json")
        assert json.loads(dump_json_like(same, value)) == value
