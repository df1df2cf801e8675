"""Which held-out windows a run is measured on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.data import split, whole
from ctxforge.calibrate.data.split import Ranges
from ctxforge.calibrate.held_out import HeldOut, HeldOutSettings, held_out
from ctxforge.errors import UsageError
from tests.calibrate.data_builders import synthetic

WANTED = HeldOutSettings(trained_length=100, target_length=1000, windows=3, short_windows=4)
_made = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


def part(folder: Path, *lengths: int, prefix: tuple[int, ...] = ()) -> Ranges:
    number = next(_made)
    return whole(synthetic(folder / str(number), lengths, prefix=prefix, salt=number))


def places(found: HeldOut, side: str) -> list[tuple[int, int, int, int]]:
    return [(w.piece.source, w.piece.document, w.piece.start, w.piece.stop) for w in getattr(found, side)]


def test_long_windows_reach_the_target_and_short_ones_lie_elsewhere(folder: Path) -> None:
    source = part(folder, 2500, 60, 1200, 55, 30)
    found = held_out([source], WANTED)
    assert (found.length, found.short_length, found.beyond, found.notes) == (1000, 50, True, ())
    assert places(found, "long") == [(0, 0, 0, 1000), (0, 2, 0, 1000), (0, 0, 1000, 2000)]
    # First the documents that have no long window, then what follows the long ones.
    assert places(found, "short") == [(0, 1, 0, 50), (0, 3, 0, 50), (0, 0, 2000, 2050), (0, 2, 1000, 1050)]
    for window in (*found.long, *found.short):
        text = source.cache.document(window.piece.document)[window.piece.start : window.piece.stop]
        assert window.ids.tolist() == text.tolist()
        assert window.predicted == len(text) - 1


def test_two_sources_take_turns_and_prefixes_count(folder: Path) -> None:
    parts = [part(folder, 2100, 70, 80, prefix=(7,)), part(folder, 1500, 90)]
    found = held_out(parts, WANTED)
    assert [(source, document) for source, document, *_ in places(found, "long")] == [(0, 0), (1, 0), (0, 0)]
    assert [window.prefix for window in found.long] == [1, 0, 1]
    assert {len(window.ids) for window in found.long} == {1000}
    assert found.long[0].ids[0] == 7
    assert [window.predicted for window in found.long] == [999, 999, 999]
    assert [source for source, *_ in places(found, "short")] == [0, 1, 0, 0]
    assert {len(window.ids) for window in found.short} == {50}


def test_tails_are_measured_where_they_begin(folder: Path) -> None:
    parts = split([part(folder, 4000, 5000)], 0.5, by="tails").held_out
    found = held_out(parts, WANTED)
    assert places(found, "long")[0] == (0, 0, 2000, 3000)
    assert all(start >= 2000 for _, _, start, _ in [*places(found, "long"), *places(found, "short")])


@pytest.mark.parametrize(
    ("longest", "length", "beyond"),
    [(1000, 1000, True), (999, 768, True), (256, 256, True), (255, 255, True), (199, 199, False), (120, 120, False)],
)
def test_length_when_no_document_reaches_the_target(folder: Path, longest: int, length: int, beyond: bool) -> None:
    found = held_out([part(folder, longest, 100, 90)], HeldOutSettings(100, 1000, windows=1, short_windows=2))
    assert (found.length, found.beyond) == (length, beyond)
    assert any(str(longest) in note for note in found.notes) == (longest < 1000)
    assert any("no number" in note for note in found.notes) == (not beyond)


def test_a_target_that_is_the_trained_length_has_nothing_beyond(folder: Path) -> None:
    found = held_out([part(folder, 600, 90)], HeldOutSettings(100, 100))
    assert (found.length, found.beyond) == (100, False)
    assert "nothing lies beyond" in found.notes[0]
    # With a prefix the last token of L0 + 1 is still none of those beyond.
    prefixed = held_out([part(folder, 600, prefix=(7,))], HeldOutSettings(100, 101, short_windows=1))
    assert not prefixed.beyond


def test_short_windows_fall_back(folder: Path) -> None:
    crowded = held_out([part(folder, 1000)], HeldOutSettings(100, 1000, windows=1, short_windows=3))
    assert places(crowded, "short") == [(0, 0, 0, 50), (0, 0, 50, 100), (0, 0, 100, 150)]
    assert crowded.notes == ("3 of 3 short windows overlap long ones: there is no more room.",)
    behind = held_out([part(folder, 1060)], HeldOutSettings(100, 1000, windows=1, short_windows=3))
    assert places(behind, "short") == [(0, 0, 1000, 1050), (0, 0, 0, 50), (0, 0, 50, 100)]
    assert behind.notes[0].startswith("2 of 3 short")
    # 3 of 40 tokens measure more than 1 of 45 or 4 of 20.
    small = held_out([part(folder, 45, 20, 40, 41)], HeldOutSettings(100, 1000, short_windows=8))
    assert (small.short_length, len(small.short), small.beyond) == (40, 3, False)
    assert "short windows have 40" in " ".join(small.notes)
    assert "3 of 8 windows of 40" in " ".join(small.notes)


def test_the_digest_is_that_of_the_ids(folder: Path) -> None:
    source = part(folder, 2500, 400)
    first, again = held_out([source], WANTED), held_out([source], WANTED)
    assert first.digest == again.digest
    assert len(first.digest) == 64
    others = [
        held_out([source], HeldOutSettings(100, 1000, windows=1, short_windows=4)),
        held_out([source], HeldOutSettings(100, 1000, windows=3, short_windows=4, short_length=51)),
        held_out([part(folder, 2500, 401)], HeldOutSettings(100, 999, windows=3, short_windows=4)),
    ]
    assert len({first.digest, *(one.digest for one in others)}) == 4
    assert first.document()["digest"] == first.digest


def test_nothing_held_out_and_bad_numbers(folder: Path) -> None:
    empty = split([part(folder, 500)], 0).held_out
    with pytest.raises(UsageError, match="no held-out document"):
        held_out(empty, WANTED)
    with pytest.raises(UsageError, match="no held-out document"):
        held_out([part(folder, 1)], WANTED)
    with pytest.raises(UsageError, match="leave no context"):
        held_out([part(folder, 500, prefix=(7,))], HeldOutSettings(100, 200, refresh=99))
    for wrong in (
        {"target_length": 99},
        {"windows": 0},
        {"short_windows": 0},
        {"short_length": 101},
        {"short_length": 1},
        {"refresh": 100},
        {"refresh": 0},
    ):
        with pytest.raises(UsageError):
            HeldOutSettings(**{"trained_length": 100, "target_length": 1000, **wrong})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 700), min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(100, 500),
)
def test_windows_of_any_data(folder: Path, lengths: list[list[int]], windows: int, short: int, target: int) -> None:
    parts = [part(folder, *one) for one in lengths]
    if max(map(max, lengths)) < 2:
        with pytest.raises(UsageError):
            held_out(parts, HeldOutSettings(100, target, windows, short))
        return
    found = held_out(parts, HeldOutSettings(100, target, windows, short))
    assert 1 <= len(found.long) <= windows
    assert 1 <= len(found.short) <= short
    longest = max(map(max, lengths))
    usable = target if longest >= target else longest - longest % 256 if longest >= 256 else longest
    assert found.length == usable
    assert found.beyond == (target > 100 and (longest >= target or usable >= 200))
    for side in ("long", "short"):
        taken = np.concatenate([np.zeros(0, int), *(key(found, w) for w in getattr(found, side))])
        assert len(taken) == len(set(taken.tolist()))
    long, small = ({int(one) for w in side for one in key(found, w)} for side in (found.long, found.short))
    both = long & small
    assert bool(both) == any("overlap" in note for note in found.notes)


def key(found: HeldOut, window: object) -> np.ndarray:
    """A number for each token's place."""
    piece = window.piece  # type: ignore[attr-defined]
    return np.arange(piece.start, piece.stop) + 10_000 * piece.document + 1_000_000 * piece.source
