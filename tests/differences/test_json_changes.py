"""Differences of JSON documents: by hand, and that applying them gives the other document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.differences import JsonChange, apply_changes, json_changes
from ctxforge.differences.json_changes import path_text

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.0, 2.5, "a", "b", ""])
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=120, deadline=None)
@given(DOCUMENTS, DOCUMENTS)
def test_applying_the_changes_gives_the_other_document(before: Any, after: Any) -> None:
    kept = json.dumps(before)
    changes = json_changes(before, after)
    # As texts, since True == 1 == 1.0 in Python and not in JSON.
    assert json.dumps(apply_changes(before, changes), sort_keys=True) == json.dumps(after, sort_keys=True)
    assert json.dumps(before) == kept
    assert (not changes) == (json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True))


@settings(max_examples=30, deadline=None)
@given(DOCUMENTS)
def test_a_document_does_not_differ_from_itself(document: Any) -> None:
    assert json_changes(document, json.loads(json.dumps(document))) == ()


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({"a": 1}, {"a": 1.0}, [JsonChange(("a",), "changed", 1, 1.0)]),
        ({"a": 1}, {"a": True}, [JsonChange(("a",), "changed", 1, True)]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": None}, {}, [JsonChange(("a",), "removed", None)]),
        ({}, {"a": None}, [JsonChange(("a",), "added", None, None)]),
        (
            {"r": {"t": "default", "f": [1, 2, 3]}},
            {"r": {"t": "yarn", "f": [1, 4]}, "n": 0},
            [
                JsonChange(("r", "t"), "changed", "default", "yarn"),
                JsonChange(("r", "f", 1), "changed", 2, 4),
                JsonChange(("r", "f", 2), "removed", 3),
                JsonChange(("n",), "added", None, 0),
            ],
        ),
        ({"a": {}}, {"a": []}, [JsonChange(("a",), "changed", {}, [])]),
        (1, 2, [JsonChange((), "changed", 1, 2)]),
    ],
)
def test_by_hand(before: Any, after: Any, wanted: list[JsonChange]) -> None:
    assert list(json_changes(before, after)) == wanted


def test_paths_for_people() -> None:
    assert path_text(("rope_scaling", "long_factor", 3)) == "rope_scaling.long_factor[3]"
    assert path_text(("a.b", "c d")) == '["a.b"]["c d"]'
    assert path_text(()) == "(the whole document)"
