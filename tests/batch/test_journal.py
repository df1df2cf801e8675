"""The journal: what survives a kill at any byte, and who may hold it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.batch import journal as module
from ctxforge.batch.journal import Journal, replay
from ctxforge.errors import ResourceError

EVENTS = st.lists(
    st.builds(
        lambda kind, job, key: {"event": kind, "job": job, "key": key, "stage": "convert", "note": "é\n"},
        st.sampled_from(["start", "stage", "end"]),
        st.sampled_from("ab"),
        st.integers(0, 9).map(str),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(EVENTS, EVENTS, st.integers(0, 2000))
def test_a_torn_line_is_cut_off_and_no_whole_one_is_lost(
    tmp_path_factory: pytest.TempPathFactory, before: list[dict[str, str]], after: list[dict[str, str]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("j") / "x.journal.jsonl"
    lines = [json.dumps(event).encode() + b"\n" for event in before]
    data = b"".join(lines)[:cut]
    path.write_bytes(data)
    whole = before[: data.count(b"\n")]
    with Journal(path) as journal:
        assert journal.records == replay(b"".join(json.dumps(event).encode() + b"\n" for event in whole))
        journal.append({"event": "start", "job": "c", "key": "k"})
        journal.append(*after)
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert found == [*whole, {"event": "start", "job": "c", "key": "k"}, *after]


def test_replay_knows_what_has_no_end() -> None:
    lines = [
        {"event": "start", "job": "a", "key": "1"},
        {"event": "stage", "job": "a", "stage": "convert", "key": "1", "out": "x"},
        {"event": "end", "job": "a", "status": "done"},
        {"event": "start", "job": "a", "key": "2"},
        {"event": "start", "job": "b", "key": "3"},
        {"event": "end", "job": "b", "status": "failed"},
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b'not json\n[1]\n{"event": 3}\n\x00\n'
    found = replay(data)
    assert found["a"].begun == lines[3]
    assert found["a"].stages["convert"]["key"] == "1"
    assert found["b"].begun is None
    assert set(found) == {"a", "b"}


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    path = tmp_path / "new" / "x.journal.jsonl"
    with Journal(path) as first:
        with pytest.raises(ResourceError, match="Another run of ctxforge is using the journal"):
            Journal(path)
        first.append({"event": "start", "job": "a", "key": "1"})
    with Journal(path) as second:
        assert second.records["a"].begun is not None
    with Journal(path, fresh=True) as third:
        assert third.records == {}
    assert not path.parent.exists() or not path.exists()


def test_an_append_that_was_cut_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.journal.jsonl"
    real, left = os.write, [1]

    def cut(descriptor: int, data: memoryview) -> int:
        if left:
            left.pop()
            real(descriptor, bytes(data)[:10])
            raise KeyboardInterrupt
        return real(descriptor, data)

    with Journal(path) as journal:
        monkeypatch.setattr(os, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            journal.append({"event": "start", "job": "a", "key": "1"})
        journal.append({"event": "start", "job": "b", "key": "2"})
    assert set(replay(path.read_bytes())) == {"b"}
