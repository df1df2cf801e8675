"""Whatever happens to a folder's bytes, reading and checking it end in a result or in an error with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.checkpoint import read_checkpoint, verify_integrity
from ctxforge.errors import CtxforgeError
from tests.checkpoint.builders import build

FILES = ("config.json", "model.safetensors.index.json", "tokenizer_config.json", "model-00001-of-00002.safetensors")
PIECES = st.sampled_from(
    [*(bytes([byte]) for byte in b'{}[]":,-0/\x00\xff'), b"1e999", b"NaN", b"null", b"\\u0000", b"9" * 30, b"../"]
) | st.sampled_from([b"model", b"BF16", b"F64", b"data_offsets", b".safetensors"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("mutated") / "src")


def judge(root: Path) -> None:
    try:
        read_checkpoint(root)
    except CtxforgeError as error:
        message = (error.cause, error.remedy)
        if not all(message) or any("\n" in part or len(part) > 600 for part in message):
            raise AssertionError(message) from error
    problems = verify_integrity(root)
    assert all(problem and "\n" not in problem for problem in problems)


@settings(max_examples=600, deadline=None)
@given(
    name=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 6), PIECES | st.binary(max_size=4)), max_size=4),
    cut=st.none() | st.integers(0, 4000),
)
def test_mutated_bytes(folder: Path, name: str, edits: list[tuple[int, int, bytes]], cut: int | None) -> None:
    original = (folder / name).read_bytes()
    data = original
    for position, removed, piece in edits:
        place = position % (len(data) + 1)
        data = data[:place] + piece + data[place + removed :]
    (folder / name).write_bytes(data if cut is None else data[:cut])
    try:
        judge(folder)
    finally:
        (folder / name).write_bytes(original)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["a/../b", "/x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metadata", "weight_map", "total_size", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(FILES[:3]), value=JSON)
def test_arbitrary_json_files(folder: Path, name: str, value: object) -> None:
    original = (folder / name).read_bytes()
    (folder / name).write_text(json.dumps(value))
    try:
        judge(folder)
    finally:
        (folder / name).write_bytes(original)
