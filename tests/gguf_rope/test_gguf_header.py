"""The header's parser: lossless, and never anything but an error with a remedy, whatever the bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.errors import CheckpointError, CtxforgeError
from ctxforge.gguf_rope.header import parse_header
from tests.gguf_rope.builders import build_gguf, fields


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf").read_bytes()


@pytest.mark.parametrize("alignment", [None, 64, 4096])
def test_the_header_comes_back_byte_for_byte(tmp_path: Path, alignment: int | None) -> None:
    path = build_gguf(tmp_path / "a.gguf", alignment=alignment)
    data = path.read_bytes()
    header = parse_header(data, "a.gguf")
    assert header.dump() == data[: header.size]
    assert header.alignment == (alignment or 32)
    reader = GGUFReader(path)
    assert header.size == reader.data_offset
    assert [record.name for record in header.records] == [tensor.name for tensor in reader.tensors]
    theirs = fields(path)
    assert {entry.key for entry in header.entries} == set(theirs)
    scalars = {entry.key: entry.value for entry in header.entries if entry.value is not None}
    assert scalars == {key: theirs[key] for key in scalars}
    assert scalars["llama.rope.scaling.type"] == "yarn"


def test_every_truncation_is_an_error(whole: bytes) -> None:
    size = parse_header(whole, "a").size
    used = max(end for end in range(size) if whole[end - 1] != 0)
    for end in range(0, used - 8, 7):
        with pytest.raises(CheckpointError) as caught:
            parse_header(whole[:end], "a.gguf")
        assert caught.value.remedy


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_end_in_a_header_or_an_error(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole[: parse_header(whole, "a").size])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        piece = data.draw(st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"\x09", b"\x63\x00\x00\x00", b"\x80"]))
        changed[at : at + len(piece)] = piece
    with contextlib.suppress(CtxforgeError):
        parse_header(bytes(changed), "a.gguf")
