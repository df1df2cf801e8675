"""What is held out: decided by a document's text alone, or the ends of documents where there are few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctxforge.calibrate.data import Ranges, distinct, held_out_windows, split, whole
from ctxforge.errors import UsageError
from tests.calibrate.data_builders import synthetic


def held(parts: tuple[Ranges, ...]) -> set[int]:
    """The hashes of the documents in some ranges."""
    return {int(part.cache.hashes[i]) for part in parts for i in part.document}


def test_a_document_stays_where_it_is_when_others_are_added(tmp_path: Path) -> None:
    few = synthetic(tmp_path / "few", [10] * 300)  # the same salt: the first 300 documents of the many
    many = synthetic(tmp_path / "many", [10] * 2000)
    assert set(few.hashes.tolist()) < set(many.hashes.tolist())
    one, two = split([whole(few)], 0.1), split([whole(many)], 0.1)
    assert one.by == two.by == "documents"
    assert held(one.held_out) == held(two.held_out) & set(few.hashes.tolist())
    assert held(one.train) == held(two.train) & set(few.hashes.tolist())
    assert abs(len(two.held_out[0]) - 200) < 60  # 4.5 standard deviations
    assert len(two.train[0]) + len(two.held_out[0]) == 2000
    assert not held(two.train) & held(two.held_out)
    assert held(two.held_out) < held(split([whole(many)], 0.2).held_out)


def test_the_threshold_is_the_share_of_the_hash(tmp_path: Path) -> None:
    cache = synthetic(tmp_path / "a", [10] * 500)
    found = split([whole(cache)], 0.25, by="documents").held_out[0]
    expected = [i for i, value in enumerate(cache.hashes.tolist()) if value / 2**64 < 0.25]
    assert found.document.tolist() == expected


def test_a_single_book_gives_its_end(tmp_path: Path) -> None:
    cache = synthetic(tmp_path / "a", [1000, 3])
    found = split([whole(cache)], 0.05)
    assert found.by == "tails"
    train, end = found.train[0], found.held_out[0]
    assert (train.document.tolist(), train.start.tolist(), train.stop.tolist()) == ([0, 1], [0, 0], [950, 3])
    assert (end.document.tolist(), end.start.tolist(), end.stop.tolist()) == ([0], [950], [1000])
    assert train.tokens + end.tokens == 1003


def test_nothing_held_out_and_what_cannot_be(tmp_path: Path) -> None:
    cache = synthetic(tmp_path / "a", [1000])
    assert split([whole(cache)], 0).train[0].tokens == 1000
    with pytest.raises(UsageError, match=r"of 1 documents leaves nothing (held out|left to train on)"):
        split([whole(cache)], 0.1, by="documents")
    with pytest.raises(UsageError, match="leaves nothing held out"):
        split([whole(synthetic(tmp_path / "b", [5, 5]))], 0.1, by="tails")
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(UsageError, match="is not usable"):
            split([whole(cache)], share)


def test_a_text_in_two_sources_is_taken_from_the_first(tmp_path: Path) -> None:
    one, two = synthetic(tmp_path / "a", [10] * 50), synthetic(tmp_path / "b", [10] * 80)
    three = synthetic(tmp_path / "c", [10] * 20, salt=1)
    assert [len(part) for part in distinct([one, two, three])] == [50, 30, 20]
    assert distinct([one, two])[1].document.tolist() == list(range(50, 80))
    found = split(distinct([one, two, three]), 0.2)
    assert not held(found.train) & held(found.held_out)


def test_windows_of_an_evaluation(tmp_path: Path) -> None:
    one = synthetic(tmp_path / "a", [100, 950, 400], prefix=(7, 8))
    two = synthetic(tmp_path / "b", [300], salt=1)
    found = held_out_windows([whole(one), whole(two)], 202, 5)
    shown = [(piece.source, piece.document, piece.start, piece.stop) for piece in found]
    assert shown == [(0, 1, 0, 200), (1, 0, 0, 202), (0, 2, 0, 200), (0, 1, 200, 400), (0, 2, 200, 400)]
    everything = held_out_windows([whole(one), whole(two)], 202, 1000)
    assert len(everything) == 4 + 2 + 1
    assert held_out_windows([whole(one)], 2000, 3) == ()
    assert np.all([len(piece) in (200, 202) for piece in everything])
