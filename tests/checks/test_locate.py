"""Lines of keys in JSON texts, against an independent walk over the parsed document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.static_checks.locate import find_key

TEXT = """{
  "a": {"b": 1, "a": 2},
  "list": [
    10, {"b": [true, null]}, "x"
  ],
  "quo\\"te, {": "}",
  "b": 3
}
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("a",), (2, 3)),
        (("a", "b"), (2, 9)),
        (("a", "a"), (2, 17)),
        (("list", 0), (4, 5)),
        (("list", 1), (4, 9)),
        (("list", 1, "b"), (4, 10)),
        (("list", 1, "b", 1), (4, 22)),
        (("list", 2), (4, 30)),
        (('quo"te, {',), (6, 3)),
        (("b",), (7, 3)),
        (("c",), None),
        (("a", "b", "c"), None),
        (("list", 3), None),
    ],
)
def test_places_by_hand(path: tuple[str | int, ...], place: tuple[int, int] | None) -> None:
    assert find_key(TEXT, path) == place


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for step, inner in steps for found in [(*path, step), *paths(inner, (*path, step))]]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=6), VALUES, max_size=4), st.sampled_from([None, 2]), st.booleans())
def test_every_key_is_found_where_it_stands(value: dict[str, Any], indent: int | None, plain: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    lines = text.split("\n")
    for path in paths(value):
        place = find_key(text, path)
        assert place is not None, path
        rest = lines[place[0] - 1][place[1] - 1 :]
        if isinstance(path[-1], str):
            assert rest.startswith(json.dumps(path[-1], ensure_ascii=plain) + ":")
