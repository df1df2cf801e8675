"""What a step trains on: a pure function of (seed, step), whatever the processes; nothing lost, nothing doubled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.data import (
    Mixture,
    Piece,
    PlannedRow,
    Stage,
    curriculum,
    make_mixture,
    plan_batch,
    read_row,
    whole,
)
from ctxforge.calibrate.data.mixture import BLOCK
from ctxforge.calibrate.data.permute import bounded, permutation
from ctxforge.errors import UsageError
from tests.calibrate.data_builders import synthetic

Drawn = list[tuple[int, int, int, int]]
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=12)

GOLDEN_ORDER = [4, 5, 0, 3, 7, 6, 2, 1]
GOLDEN_NUMBERS = [4, 42, 362]
GOLDEN_STEP_2 = [
    (0, 2, 143, 207),
    (0, 6, 0, 30),
    (0, 1, 0, 34),
    (0, 2, 463, 527),
    (1, 1, 36, 40),
    (0, 1, 0, 50),
    (0, 6, 0, 14),
    (0, 2, 911, 975),
    (1, 2, 128, 192),
    (0, 3, 146, 210),
]
GOLDEN_STEP_57 = [
    (1, 2, 40, 296),
    (0, 2, 373, 629),
    (0, 5, 0, 65),
    (0, 1, 0, 50),
    (0, 6, 0, 30),
    (0, 4, 0, 64),
    (0, 0, 365, 621),
]


def drawn(rows: tuple[PlannedRow, ...]) -> Drawn:
    return [(p.source, p.document, p.start, p.stop) for row in rows for p in row.pieces]


def rows_of(mixture: Mixture, seed: int, steps: range) -> list[PlannedRow]:
    return [row for step in steps for row in plan_batch(mixture, seed, step).rows]


@pytest.fixture
def two_sources(tmp_path: Path) -> Mixture:
    books = synthetic(tmp_path / "books", [900, 50, 2000, 700, 64, 65, 30])
    code = synthetic(tmp_path / "code", [20, 40, 500, 8, 100], salt=1)
    parts = [whole(books), whole(code)]
    return make_mixture(parts, [Stage(40, 64, 8), Stage(60, 256, 4)], weights=[0.75, 0.25], short_share=0.4)


def test_goldens(two_sources: Mixture) -> None:
    """A run that is resumed after an update goes on with the data that it would have had."""
    assert permutation(8, 3, 1, 4).tolist() == GOLDEN_ORDER
    assert bounded(np.array([10, 100, 1000]), 7).tolist() == GOLDEN_NUMBERS
    assert drawn(plan_batch(two_sources, 11, 2).rows) == GOLDEN_STEP_2
    assert drawn(plan_batch(two_sources, 11, 57).rows) == GOLDEN_STEP_57


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10_000), world=st.sampled_from([1, 2, 4, 8, 24]))
def test_processes_share_one_batch(seed: int, step: int, world: int) -> None:
    with TemporaryDirectory() as folder:
        mixture = make_mixture([whole(synthetic(Path(folder) / "a", [300, 20, 90, 5]))], [Stage(10, 64, 24)])
        whole_batch = plan_batch(mixture, seed, step)
        parts = [plan_batch(mixture, seed, step, rank=rank, world=world) for rank in range(world)]
        assert tuple(row for part in parts for row in part.rows) == whole_batch.rows
        assert {part.global_rows for part in parts} == {24}
        assert {len(part.rows) for part in parts} == {24 // world}


def test_no_state_but_seed_and_step(two_sources: Mixture, tmp_path: Path) -> None:
    forwards = [plan_batch(two_sources, 5, step) for step in range(60)]
    other = make_mixture(
        two_sources.parts, [Stage(40, 64, 8), Stage(60, 256, 4)], weights=[0.75, 0.25], short_share=0.4
    )
    assert [plan_batch(other, 5, step) for step in reversed(range(60))] == forwards[::-1]
    assert plan_batch(two_sources, 6, 3) != forwards[3]
    numbers = [row.number for plan in forwards[:40] for row in plan.rows]
    assert numbers == list(range(320))


@settings(deadline=None, max_examples=40)
@example(lengths=[1, 90], size=3, prefix=(1,), seed=0)
@given(lengths=LENGTHS, size=st.integers(3, 40), prefix=st.sampled_from([(), (1,)]), seed=st.integers(0, 99))
def test_short_rows_hold_every_token_once_an_epoch(
    lengths: list[int], size: int, prefix: tuple[int, ...], seed: int
) -> None:
    with TemporaryDirectory() as folder:
        cache = synthetic(Path(folder) / "a", lengths, prefix=prefix)
        mixture = make_mixture([whole(cache)], [Stage(1, 91, 1)], short_share=1.0, short_length=size)
        epoch = mixture.stages[0].pools[0].epoch_rows
        for first in (0, epoch):
            rows = rows_of(mixture, seed, range(first, first + epoch))
            count = Counter((p.document, t) for row in rows for p in row.pieces for t in range(p.start, p.stop))
            assert count == {(d, t): 1 for d, length in enumerate(lengths) for t in range(length)}
            assert all(len(read_row([cache], row.pieces).ids) <= size for row in rows)
            assert all(row.kind == "short" for row in rows)


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, size=st.integers(3, 40), prefix=st.sampled_from([(), (1,)]), seed=st.integers(0, 99))
def test_long_rows_are_every_window_once_an_epoch(
    lengths: list[int], size: int, prefix: tuple[int, ...], seed: int
) -> None:
    lengths = [*lengths, size]
    body = size - len(prefix)
    with TemporaryDirectory() as folder:
        cache = synthetic(Path(folder) / "a", lengths, prefix=prefix)
        mixture = make_mixture([whole(cache)], [Stage(1, size, 1)], short_share=0.0)
        epoch = sum(length // body for length in lengths)
        assert mixture.stages[0].pools[0].epoch_rows == epoch
        for first in (0, epoch):
            rows = rows_of(mixture, seed, range(first, first + epoch))
            windows = Counter(row.pieces[0].document for row in rows)
            assert windows == {d: length // body for d, length in enumerate(lengths) if length >= body}
            tokens = Counter((p.document, t) for row in rows for p in row.pieces for t in range(p.start, p.stop))
            assert set(tokens.values()) == {1}
            assert all(0 <= t < lengths[d] for d, t in tokens)
            for row in rows:
                ids = read_row([cache], row.pieces).ids.tolist()
                piece = row.pieces[0]
                assert ids == [*prefix, *cache.document(piece.document)[piece.start : piece.stop].tolist()]
                assert len(ids) == size


def test_epochs_differ(tmp_path: Path) -> None:
    mixture = make_mixture([whole(synthetic(tmp_path / "a", [1000] * 5))], [Stage(1, 64, 75)], short_share=0.0)
    one, two = (drawn(plan_batch(mixture, 0, step).rows) for step in (0, 1))
    assert one != two
    begins = [sorted({(document, start % 64) for _, document, start, _ in rows}) for rows in (one, two)]
    assert [len(found) for found in begins] == [5, 5]
    assert sum(a != b for a, b in zip(*begins, strict=True)) >= 3  # of 5 documents, each with 41 places to begin at


@settings(deadline=None, max_examples=30)
@given(
    weights=st.lists(st.integers(1, 50), min_size=3, max_size=3),
    share=st.integers(0, 100),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 50),
)
def test_shares_are_met_in_every_thousand_rows(weights: list[int], share: int, seed: int, first: int) -> None:
    with TemporaryDirectory() as folder:
        parts = [whole(synthetic(Path(folder) / str(i), [200, 30, 10], salt=i)) for i in range(3)]
        mixture = make_mixture(parts, [Stage(1, 100, BLOCK)], weights=[*map(float, weights)], short_share=share / 100)
        rows = plan_batch(mixture, seed, first).rows
        sources = Counter(row.pieces[0].source for row in rows)
        for source, weight in enumerate(weights):
            wanted = weight / sum(weights)
            assert abs(sources[source] / BLOCK - wanted) <= 0.003
            assert mixture.stages[0].source_share(source) == sources[source] / BLOCK
            short = sum(row.kind == "short" and row.pieces[0].source == source for row in rows)
            assert abs(short / BLOCK - wanted * share / 100) <= 0.003


def test_a_batch_has_about_its_share(two_sources: Mixture) -> None:
    """Rows of a pool are spread, so batches of 8 with 40 % short rows have 2 to 5; drawn freely, some would have 0."""
    found = Counter(sum(row.kind == "short" for row in plan_batch(two_sources, 3, step).rows) for step in range(40))
    assert min(found) >= 2
    assert max(found) <= 5


def test_long_documents_are_drawn_more_often_inside_each_source(two_sources: Mixture) -> None:
    """The domain mix stays as it was asked for, whatever each source has of long documents (2402.10171)."""
    rows = [row for row in rows_of(two_sources, 1, range(40, 290)) if row.number < BLOCK]
    assert len(rows) == BLOCK
    by_source = Counter(row.pieces[0].source for row in rows)
    assert by_source == {0: 750, 1: 250}
    long = Counter(row.pieces[0].source for row in rows if row.kind == "long")
    assert long == {0: 450, 1: 150}
    documents = {(p.source, p.document) for row in rows if row.kind == "long" for p in row.pieces}
    assert documents == {(0, 0), (0, 2), (0, 3), (1, 2)}
    short = {(p.source, p.document) for row in rows if row.kind == "short" for p in row.pieces}
    assert short == {(0, 1), (0, 4), (0, 5), (0, 6), (1, 0), (1, 1), (1, 3), (1, 4)}


def test_sources_without_long_or_without_short_documents(tmp_path: Path) -> None:
    parts = [whole(synthetic(tmp_path / "book", [5000])), whole(synthetic(tmp_path / "notes", [50] * 9, salt=1))]
    mixture = make_mixture(parts, [Stage(5, 512, 10)], weights=[0.5, None], short_share=0.3, short_length=128)
    rows = rows_of(mixture, 0, range(100))
    assert Counter((row.kind, row.pieces[0].source) for row in rows) == {
        ("long", 0): 350,
        ("short", 0): 150,  # pieces of the book
        ("short", 1): 500,
    }
    assert mixture.stages[0].short_share == 0.65
    assert max(sum(map(len, row.pieces)) for row in rows if row.kind == "short") == 128


def test_weights(tmp_path: Path) -> None:
    parts = [whole(synthetic(tmp_path / str(i), [100] * n, salt=i)) for i, n in enumerate((1, 3, 6))]
    stages = [Stage(1, 50, 1)]

    def shares(weights: list[float | None] | None) -> list[float]:
        mixture = make_mixture(parts, stages, weights=weights)
        return [mixture.stages[0].source_share(i) for i in range(3)]

    assert shares(None) == [0.1, 0.3, 0.6]
    assert shares([3.0, 1.0, 1.0]) == [0.6, 0.2, 0.2]
    assert shares([0.4, None, None]) == [0.4, 0.2, 0.4]
    for wrong in ([1.0, None, None], [0.5, 0.5], [-1.0, 1.0, 1.0], [float("nan"), 1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(UsageError):
            shares(wrong)  # type: ignore[arg-type]


def test_short_to_long(two_sources: Mixture) -> None:
    assert curriculum(100, 8192, length=2048, short=512, short_steps=0.4) == (Stage(40, 512, 16), Stage(60, 2048, 4))
    assert curriculum(100, 8192, length=2048) == (Stage(100, 2048, 4),)
    assert curriculum(100, 100, length=2048, short=2048) == (Stage(100, 2048, 1),)
    assert [plan_batch(two_sources, 0, step).length for step in (0, 39, 40, 99, 100, 5000)] == [64, 64, *[256] * 4]
    assert len(plan_batch(two_sources, 0, 39).rows) == 8
    assert len(plan_batch(two_sources, 0, 40).rows) == 4


def test_what_cannot_be_planned(tmp_path: Path, two_sources: Mixture) -> None:
    part = whole(synthetic(tmp_path / "a", [100, 40], prefix=(1, 2)))
    with pytest.raises(UsageError, match="2 documents, the longest of 102 tokens, and none reaches 103"):
        make_mixture([part], [Stage(1, 103, 1)])
    make_mixture([part], [Stage(1, 102, 1)])
    make_mixture([part], [Stage(1, 103, 1)], short_share=1.0)
    with pytest.raises(UsageError, match="hold no text"):
        make_mixture([part], [Stage(1, 4, 1)])
    with pytest.raises(UsageError, match="nothing to draw from"):
        make_mixture([], [Stage(1, 4, 1)])
    with pytest.raises(UsageError, match="share of short rows"):
        make_mixture([part], [Stage(1, 50, 1)], short_share=1.2)
    with pytest.raises(UsageError, match="a stage of 0 steps"):
        Stage(0, 1, 1)
    with pytest.raises(UsageError) as caught:
        plan_batch(two_sources, 0, 0, rank=0, world=3)
    assert caught.value.cause == "a batch of 8 rows does not divide by 3 processes"
    assert "a batch of 9 rows" in caught.value.remedy
    for wrong in ({"step": -1}, {"rank": 2, "world": 2}, {"world": 0}, {"seed": -1}):
        with pytest.raises(UsageError):
            plan_batch(two_sources, **{"seed": 0, "step": 0, **wrong})


def test_held_out_tails_leave_too_little(tmp_path: Path) -> None:
    part = whole(synthetic(tmp_path / "a", [1000]))
    cut = type(part)(part.cache, part.document, part.start, part.stop - 100)
    with pytest.raises(UsageError, match="holds no 950 tokens in a row, but 900"):
        make_mixture([cut], [Stage(1, 950, 1)])


def test_a_row_says_where_its_segments_are(tmp_path: Path) -> None:
    cache = synthetic(tmp_path / "a", [6, 3, 40], prefix=(9,))
    mixture = make_mixture([whole(cache)], [Stage(1, 20, 1)], short_share=1.0, short_length=11)
    assert mixture.stages[0].pools[0].epoch_rows == 6  # 7 + 4 + 41 tokens, 10 a row, and a prefix where one goes on
    for step in range(6):
        row = plan_batch(mixture, 0, step).rows[0]
        found = read_row([cache], row.pieces)
        expected = [[9, *cache.document(p.document)[p.start : p.stop].tolist()] for p in row.pieces]
        assert found.ids.tolist() == [one for piece in expected for one in piece]
        assert found.segments.tolist() == [i for i, piece in enumerate(expected) for _ in piece]
        assert found.learn.tolist() == [one > 0 for piece in expected for one in range(len(piece))]
        assert found.ids.dtype == np.int64
    bare = synthetic(tmp_path / "b", [3, 2])
    pieces = [Piece(0, 0, 1, 3), Piece(0, 1, 0, 2)]
    assert read_row([bare], pieces).learn.tolist() == [False, True, False, True]
