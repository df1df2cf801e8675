"""The header parser against the safetensors library: same tensors, same refusals."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ctxforge.checkpoint.dtypes import DTYPE_BITS
from ctxforge.checkpoint.header import Header, build_header, parse_header, read_header
from ctxforge.errors import CheckpointError, CtxforgeError
from tests.checkpoint.builders import raw_shard, shard_bytes, spec


def test_same_tensors_as_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    rng = np.random.default_rng(0)
    save_file(
        {
            "scalar": np.array(1.5, np.float32),
            "empty": np.zeros((0, 4), np.int64),
            "halves": rng.normal(size=(3, 5)).astype(np.float16),
            "bytes": rng.integers(0, 255, (7,)).astype(np.uint8),
        },
        path,
        metadata={"format": "pt", "note": "ünïcode"},
    )
    header = read_header(path, path.name)
    assert header.metadata == {"format": "pt", "note": "ünïcode"}
    data = path.read_bytes()
    with safe_open(path, "np") as library:
        assert {info.name for info in header.tensors} == set(library.keys())
        for info in header.tensors:
            piece = library.get_slice(info.name)
            assert list(info.shape) == piece.get_shape()
            assert info.dtype == piece.get_dtype()
            assert data[info.start : info.end] == library.get_tensor(info.name).tobytes()
    assert sum(info.nbytes for info in header.tensors) + 8 + header.length == len(data)


def test_built_header_is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = build_header([("b", "BF16", (2, 2), 8), ("a", "F32", (), 4)], {"format": "pt"})
    assert len(header) % 8 == 0
    path.write_bytes(header + bytes(12))
    with safe_open(path, "np") as library:
        assert set(library.keys()) == {"a", "b"}
        assert library.metadata() == {"format": "pt"}


def test_every_dtype_of_the_library_is_known() -> None:
    assert DTYPE_BITS["F8_E4M3"] == DTYPE_BITS["F8_E5M2"] == DTYPE_BITS["F8_E8M0"] == 8
    assert DTYPE_BITS["F4"] == 4
    data = json.dumps({"x": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}}).encode()
    assert parse_header(data, "x", 8 + len(data) + 3).tensors[0].elements == 6


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "cause"),
    [
        (b'["x"]', b"", "not a JSON object"),
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not a JSON object"),
        (b'{"a":' * 100_000, b"", "not valid JSON"),
        (b'{"a": 1}', b"", "lacks dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"", "lacks dtype"),
        ({"a": {**ONE, "dtype": "F99"}}, bytes(8), "unknown dtype"),
        ({"a": {**ONE, "dtype": ["F32"]}}, bytes(8), "unknown dtype"),
        ({"a": {**ONE, "shape": [2.0]}}, bytes(8), "shape that is not a list of sizes"),
        ({"a": {**ONE, "shape": [True]}}, bytes(8), "shape that is not a list of sizes"),
        ({"a": {**ONE, "shape": [-2]}}, bytes(8), "shape that is not a list of sizes"),
        ({"a": {**ONE, "shape": [2**62] * 2000}}, bytes(8), "do not fit"),
        ({"a": {**ONE, "data_offsets": [0]}}, bytes(8), "not two positions"),
        ({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8), "ends at byte"),
        ({"a": {**ONE, "data_offsets": [0, 10**30]}}, bytes(8), "not two positions"),
        ({"a": ONE}, bytes(4), "ends at byte"),
        ({"a": ONE}, bytes(12), "longer than its header says"),
        ({"a": ONE, "b": ONE}, bytes(8), "overlaps"),
        ({"a": {**ONE, "data_offsets": [4, 12]}}, bytes(12), "gap"),
        ({"__metadata__": {"n": 1}, "a": ONE}, bytes(8), "__metadata__"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],'
         b'"data_offsets":[0,8]}}', bytes(8), '"a" twice'),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, header: object, data: bytes, cause: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_shard(header if isinstance(header, bytes) else json.dumps(header).encode(), data))
    with pytest.raises(CheckpointError, match=cause) as caught:
        read_header(path, path.name)
    assert "x.safetensors" in caught.value.cause
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        ((10**9).to_bytes(8, "little"), "would have 1000000000 bytes"),
        ((500).to_bytes(8, "little") + b"{}", "truncated"),
        (b"<html><body>", "not a safetensors file"),
    ],
)
def test_bad_lengths(tmp_path: Path, data: bytes, cause: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=cause):
        read_header(path, path.name)


GOOD = shard_bytes(spec(1, {"a": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("U8", (0,))}))


def ours(path: Path) -> Header | None:
    try:
        return read_header(path, path.name)
    except CtxforgeError:
        return None


@settings(max_examples=400, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=0, max_size=3)), max_size=4))
def test_mutations_are_judged_as_the_library_judges_them(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]]
) -> None:
    data = bytearray(GOOD)
    for position, piece in edits:
        data[position : position + len(piece)] = piece
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(bytes(data))
    found = ours(path)
    try:
        with safe_open(path, "np") as library:
            keys = set(library.keys())
    except SafetensorError:
        assert found is None
        return
    if found is not None:
        assert {info.name for info in found.tensors} == keys


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_arbitrary_json_raises_nothing_else(value: object) -> None:
    data = json.dumps(value).encode()
    with suppress(CtxforgeError):
        parse_header(data, "x", 8 + len(data))
