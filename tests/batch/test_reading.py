"""Batch files as text: the values, and the place of every mistake."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.batch.reading import read_file, read_text
from ctxforge.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(string.ascii_letters, min_size=1), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=5), VALUES, max_size=4), st.booleans())
def test_json_reads_as_json_does(value: dict[str, Any], tabs: bool) -> None:
    text = json.dumps(value, indent="\t" if tabs else 1)
    found = read_text(text, "x.json", ".json").plain
    assert found == json.loads(text)
    assert json.dumps(found) == json.dumps(json.loads(text))  # 1 is not true, and 1.0 not 1


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("1:30", "1:30"),
        ("1e3", 1000.0),
        ("0x10", 16),
        ("010", 10),
        ("64k", "64k"),
        ("'8'", "8"),
        ("~", None),
        ("True", True),
        ("1_000", "1_000"),
        (".5", 0.5),
        ("2026-01-01", "2026-01-01"),
        ("-", "-"),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(written: str, value: object) -> None:
    if written == "-":
        written = '"-"'
    found = read_text(f"a: {written}\n", "x").plain["a"]
    assert found == value
    assert type(found) is type(value)


def test_places_count_from_one() -> None:
    node = read_text("version: 1\njobs:\n  - name: a\n    to: 4x\n  - {to: 8x}\n", "f.yaml")
    assert str(node.at(["jobs", 0, "to"])) == "f.yaml:4:5"
    assert str(node.at(["jobs", 1, "to"])) == "f.yaml:5:6"
    assert str(node.at(["jobs", 1, "absent", "deeper"])) == "f.yaml:5:5"
    assert str(node.mapping["jobs"].place) == "f.yaml:3:3"


def test_aliases_and_merge_keys() -> None:
    text = "base: &b {to: 4x, method: yarn}\njob:\n  <<: *b\n  to: 8x\nagain: *b\n"
    found = read_text(text, "x").plain
    assert found["job"] == {"to": "8x", "method": "yarn"}
    assert found["again"] == {"to": "4x", "method": "yarn"}


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ("a: [1\nb: 2\n", ".yaml", "x:2:2: not valid YAML"),
        ("a: 1\na: 2\n", ".yaml", "x:2:1: 'a' is given twice (first in line 1)"),
        ("a: !!python/name:os.system 1\n", ".yaml", "x:1:4: the tag"),
        ("a: !!binary aGk=\n", ".yaml", "x:1:4: the tag"),
        ("- 1\n", ".yaml", "x:1:1: a batch file holds a mapping"),
        ("", ".yaml", "x is empty"),
        ('{"a": "\\ud800"}', ".json", "x:1:7: holds half a character"),
        ("a: *b\n", ".yaml", "x:1:4: not valid YAML: found undefined alias"),
        ("{1: 2}: 3\n", ".yaml", "x:1:1: a name is a list or a mapping"),
        ('{"a": 1,}', ".json", "x:1:"),
        ('{"a": 1, "a": 2}', ".json", "x:1:10: 'a' is given twice"),
        ("a = \n", ".toml", "x is not valid TOML"),
        ("a = 2026-01-01\n", ".toml", "x: 2026-01-01 is of a kind"),
        ("a: &a [*a]\n", ".yaml", "deeply"),
        ("a: " + "[" * 100 + "]" * 100, ".yaml", "deeply"),
        ("a: " + "[" * 20000, ".yaml", "x"),
    ],
)
def test_mistakes_have_places(text: str, suffix: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_text(text, "x", suffix)
    assert words in caught.value.cause, caught.value.cause


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(UsageError, match="aliases stand for too much"):
        read_text("\n".join(lines), "x")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.txt", b"a: 1", "is no batch file"),
        ("x.yaml", b"a: 1\nb: \xff\n", "x.yaml:2: is not UTF-8"),
        ("x.yaml", b"#" * (4 * 1024 * 1024 + 1), "more than"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_file(tmp_path / name)
    assert words in caught.value.cause


def test_toml_is_read_without_places(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('version = 1\n[[jobs]]\nto = "4x"\n')
    node = read_file(tmp_path / "x.toml")
    assert node.plain == {"version": 1, "jobs": [{"to": "4x"}]}
    assert str(node.at(["jobs", 0])) == str(tmp_path / "x.toml")
