"""Rows hold what their builders promise, and draws have the distributions of the papers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.placement import (
    Chunk,
    Layout,
    annealed_scale_base,
    coverage,
    cream,
    cream_chunks,
    from_chunks,
    from_segments,
    full_length,
    giraffe_scale_base,
    mixed_windows,
    pack,
    pack_many,
    pose,
    pose_chunks,
    randomised,
    scattered,
    short_rows,
)
from ctxforge.calibrate.placement.cream import _cut_gaussian
from ctxforge.errors import UsageError

seeds = st.integers(0, 2**32)


def text(length: int) -> np.ndarray:
    """Tokens that tell where they stood."""
    return np.arange(1000, 1000 + length)


def chi_square(counts: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    """The statistic, standardised by Wilson and Hilferty: below 3.1 in 999 of 1000 samples."""
    assert set(counts) <= set(expected)
    statistic = sum((counts.get(cell, 0) - mean) ** 2 / mean for cell, mean in expected.items())
    freedom = len(expected) - 1
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_pose_row_fits(data: st.DataObject) -> None:
    window, length = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 200))
    size = min(window, length)
    target = size + data.draw(st.integers(0, 5000))
    chunks, seed = data.draw(st.integers(1, min(size, 5))), data.draw(seeds)
    content = data.draw(st.sampled_from(["sampled", "contiguous"] + ["aligned"] * (length >= target)))
    options: dict[str, Any] = {
        "chunks": chunks,
        "content": content,
        "lengths": data.draw(st.sampled_from(["share", "any"])),
    }
    row = pose(text(length), window, target, seed, **options)
    assert row.length == size
    assert row.positions[0] == 0
    assert row.positions[-1] < target
    assert len(row.runs()) <= chunks
    assert not row.isolated
    assert (np.diff(row.positions) >= 1).all()
    assert (np.diff(row.ids) >= 1).all()
    if content == "contiguous":
        assert np.array_equal(row.ids, text(length)[:size])
        assert row.weights[1:].all()
    if content == "aligned":
        assert np.array_equal(row.ids - 1000, row.positions)
    # Only tokens whose predecessor in the text stands before them count.
    assert np.array_equal(row.weights[1:] > 0, np.diff(row.ids) == 1)
    again = pose(text(length), window, target, seed, **options)
    assert np.array_equal(again.positions, row.positions)
    assert np.array_equal(again.ids, row.ids)
    assert pose(text(length), window, target, seed, train_seams=True, **options).weights[1:].all()


@pytest.mark.parametrize(("lengths", "firsts"), [("share", [1, 2, 3]), ("any", [1, 2, 3, 4, 5])])
def test_two_chunks_are_drawn_as_published(lengths: Any, firsts: list[int]) -> None:
    """l ~ U{1, ..., (6 + 1) // 2} or U{1, ..., 5}, u ~ U{0, ..., 10 - 6}, v ~ U{0, ..., 9 - 6}, independent."""
    found: Counter[tuple[int, int, int]] = Counter()
    draws = 6000
    for seed in range(draws):
        first, second = pose_chunks(6, 9, 10, seed, lengths=lengths)
        found[first.length, second.position_start - first.length, second.text_start - first.length] += 1
    cells = list(itertools.product(firsts, range(5), range(4)))
    assert chi_square(found, dict.fromkeys(cells, draws / len(cells))) < 3.1
    # Control: skips that shrink towards 0 would show.
    biased = Counter({(a, max(b - 1, 0), c): 0 for a, b, c in cells})
    for (a, b, c), count in found.items():
        biased[a, b if (a + c) % 2 else max(b - 1, 0), c] += count
    assert chi_square(biased, dict.fromkeys(cells, draws / len(cells))) > 10


def test_three_chunks_follow_the_papers_formula() -> None:
    """u_1 ~ U{0, ..., K}, u_2 ~ U{u_1, ..., K} (equation 4), and l_0, l_1 within an even share of what is left."""
    skips: Counter[tuple[int, int]] = Counter()
    lengths: Counter[tuple[int, int]] = Counter()
    draws, spare = 6000, 4
    for seed in range(draws):
        one, two, three = pose_chunks(7, 7, 7 + spare, seed, chunks=3)
        skips[two.position_start - one.length, three.position_start - one.length - two.length] += 1
        lengths[one.length, two.length] += 1
    wanted = {(u, w): draws / (spare + 1) / (spare - u + 1) for u in range(spare + 1) for w in range(u, spare + 1)}
    assert chi_square(skips, wanted) < 3.1
    shares = {first: math.ceil((7 - first) / 2) for first in (1, 2, 3)}
    assert (
        chi_square(lengths, {(a, b): draws / 3 / most for a, most in shares.items() for b in range(1, most + 1)}) < 3.1
    )


def test_coverage_is_the_papers_figure() -> None:
    """Distances of a row of two chunks: 1 to max(l_0, l_1) - 1 and u + 1 to u + L_c - 1 (appendix B)."""
    window, target = 8, 20
    rows, seen = [], np.zeros(target, dtype=int)
    for first, skip in itertools.product(range(1, window), range(target - window + 1)):
        rows.append(from_chunks(text(8), [Chunk(0, first, 0), Chunk(first, 8 - first, first + skip)], target))
        for distance in set(range(1, max(first, window - first))) | set(range(skip + 1, skip + window)):
            seen[distance] += 1
    found = coverage(rows, target)
    assert np.array_equal(found.rows[1:], seen[1:])
    assert found.per_row()[5] == seen[5] / len(rows)
    assert found.covered == 1.0
    assert found.reach == target
    pairs = Counter(int(b - a) for row in rows for a, b in itertools.combinations(row.positions, 2))
    assert found.pairs[1:].tolist() == [pairs[distance] for distance in range(1, target)]
    assert found.beyond(8) == pytest.approx(sum(pairs[d] for d in range(8, target)) / pairs.total())


def test_coverage_counts_within_texts_alone() -> None:
    found = coverage([pack([text(5), text(3)])], 16)
    assert found.pairs[:6].tolist() == [8, 4 + 2, 3 + 1, 2, 1, 0]
    assert found.covered == 4 / 15
    assert found.beyond(5) == 0
    assert full_length(text(16)).reach == 16
    assert coverage([full_length(text(16))], 16).covered == 1.0
    for wrong in ([], [randomised(text(9), 1)], [full_length(text(17))]):
        with pytest.raises(UsageError, match="coverage of"):
            coverage(wrong, 16)


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1, 6), length=st.integers(150, 2000), seed=seeds, sigma=st.floats(0.5, 10))
def test_every_cream_row_fits(scale: float, length: int, seed: int, sigma: float) -> None:
    target = math.floor(150 * scale)
    row = cream(text(length), 150, target, seed, sigma=sigma)
    assert row.length == 150
    assert (row.positions[0], row.positions[-1]) == (0, target - 1)
    assert len(row.runs()) <= 3
    assert (np.diff(row.ids) >= 1).all()
    assert (row.ids[0], row.ids[-1]) == (1000, 1000 + length - 1)
    head, middle, tail = cream_chunks(150, length, target, seed, sigma=sigma)
    assert head.length == tail.length in (50, 4 * math.ceil(target / 150))
    if middle.position_start + middle.length <= length - tail.length:
        assert middle.text_start == middle.position_start


def test_cream_favours_the_middle() -> None:
    """a has the cut Gaussian's distribution, and the middle chunk stands around L'/2 more often than uniform does."""
    for scale, sigma in ((2.0, 3.0), (8.0, 3.0), (8.0, 0.7)):

        def below(x: float, scale: float = scale, sigma: float = sigma) -> float:
            return 0.5 * (1 + math.erf((x - 1 - scale) / sigma / math.sqrt(2)))

        for quantile in (0.0, 0.1, 0.5, 0.8, 1.0):
            x = _cut_gaussian(quantile, scale, sigma)
            share = (below(x) - below(2)) / (below(2 * scale) - below(2))
            assert share == pytest.approx(quantile, abs=1e-9)
    chunks = [cream_chunks(300, 3000, 2400, seed) for seed in range(1500)]
    heads = Counter(head.length for head, _, _ in chunks)
    assert heads == {100: pytest.approx(750, abs=90), 32: pytest.approx(750, abs=90)}
    centres = np.array([middle.position_start + middle.length / 2 for _, middle, _ in chunks])
    inner = ((centres > 600) & (centres < 1800)).mean()
    assert inner > 0.75  # uniform: about a half


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), length=st.integers(2, 50))
def test_packing_keeps_every_token_once(sizes: list[int], length: int) -> None:
    documents = [np.arange(number * 100, number * 100 + size) for number, size in enumerate(sizes)]
    rows = pack_many(documents, length)
    assert all(row.length <= length and row.contiguous for row in rows)
    assert sorted(np.concatenate([row.ids for row in rows]).tolist()) == sorted(np.concatenate(documents).tolist())
    assert len(rows) <= max(1, 2 * sum(sizes) / length + 1)
    for row in rows:
        for run in row.runs():
            assert row.positions[run.start] == 0
            assert row.weights[run.start] == 0
            assert row.weights[run.start + 1 : run.stop].all()
            assert (np.diff(row.ids[run.start : run.stop]) == 1).all()


def test_rows_of_short_texts() -> None:
    row = pack([text(4), text(3), text(9)], 12)
    assert row.documents.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]
    assert row.extended.all()
    mixed = mixed_windows([text(4), text(30), text(9)], 40, 8)
    assert mixed.extended.tolist() == [False] * 4 + [True] * 30 + [False] * 6
    with pytest.raises(UsageError, match="does not hold 3"):
        pack([text(4), text(8), text(9)], 12)


def test_rows_of_the_data_stage() -> None:
    ids, segments = text(9), np.repeat([0, 1, 2], [4, 2, 3])
    row = from_segments(ids, segments, learn=[0, 0, 1, 1, 0, 1, 0, 0, 1])
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert row.documents.tolist() == segments.tolist()
    assert row.weights.tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 1]
    assert from_segments(ids, segments, trained_length=3).extended.tolist() == [True] * 4 + [False] * 5
    for wrong in ([0, 0, 0, 1, 1, 1, 0, 0, 0], [1] * 9, [0] * 8):
        with pytest.raises(UsageError, match="number the texts"):
            from_segments(ids, wrong)
    # What a chat's prompt says is not learnt, wherever chunks are taken from.
    learn = np.arange(200) % 3 == 0
    skipping = pose(text(200), 40, 400, 5, learn=learn)
    assert set((skipping.ids[skipping.weights > 0] - 1000) % 3) == {0}
    assert (skipping.weights > 0).sum() >= learn[skipping.ids - 1000].sum() - 2
    assert set(
        (cream(text(200), 60, 120, 5, learn=learn).ids - 1000)[cream(text(200), 60, 120, 5, learn=learn).weights > 0]
        % 3
    ) == {0}
    with pytest.raises(UsageError, match="weights for a text"):
        pose(text(200), 40, 400, 5, learn=[True])


def test_scattered_positions() -> None:
    row = randomised(text(500), (3, 4))
    assert row.positions.dtype == np.float64
    assert (row.ids == text(500)).all()
    assert np.diff(row.positions).mean() == pytest.approx(1, abs=0.05)
    assert np.array_equal(row.positions, randomised(text(500), (3, 4)).positions)
    assert not np.array_equal(row.positions, randomised(text(500), (3, 5)).positions)
    counts = Counter(int(at) for seed in range(2000) for at in scattered(text(3), 12, seed).positions)
    assert chi_square(counts, dict.fromkeys(range(12), 500)) < 3.1
    with pytest.raises(UsageError, match="do not fit 2"):
        scattered(text(3), 2, 0)


def test_a_share_of_short_rows() -> None:
    draws = np.array([short_rows(8, 0.3, (7, step)) for step in range(2000)])
    assert set(draws.sum(1).tolist()) == {2, 3}
    assert draws.mean() == pytest.approx(0.3, abs=0.005)
    assert draws.mean(0) == pytest.approx(np.full(8, 0.3), abs=0.04)
    assert all(short_rows(10, 0.3, seed).sum() == 3 for seed in range(50))
    assert short_rows(5, 1.0, 1).all()
    assert not short_rows(5, 0.0, 1).any()


def test_scale_bases_fall() -> None:
    assert [giraffe_scale_base(step) for step in (0, 1, 1007, 1008, 5000)] == [8192, 8184, 136, 128, 128]
    assert annealed_scale_base(0, 10, start=1e6, end=500) == pytest.approx(1e6)
    assert annealed_scale_base(10, 10, start=1e6, end=500) == annealed_scale_base(99, 10, start=1e6, end=500)
    assert 1 / annealed_scale_base(5, 10, start=1e6, end=500) == pytest.approx((1e-6 + 1 / 500) / 2)
    assert annealed_scale_base(5, 10, start=1000, end=500, shape="linear") == 750
    with pytest.raises(UsageError):
        annealed_scale_base(1, 0, start=2, end=1)


def test_rows_cannot_be_wrong() -> None:
    good = {
        "ids": [5, 6, 7],
        "positions": [0, 1, 4],
        "documents": [0, 0, 0],
        "weights": [0, 1, 1],
        "extended": [True] * 3,
    }
    row = Layout(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        row.ids[0] = 1
    assert row.weighted([5, 0.5, 2]).weights.tolist() == [0, 0.5, 2]
    for change, said in (
        ({"positions": [0, 1, 1]}, "do not rise"),
        ({"positions": [-1, 1, 2]}, "negative"),
        ({"documents": [1, 1, 1]}, "not numbered"),
        ({"documents": [0, 2, 2]}, "not numbered"),
        ({"weights": [1, 1, 1]}, "nothing predicts it"),
        ({"weights": [0, 1, float("nan")]}, "not finite"),
        ({"ids": [5, 6]}, "of one length"),
    ):
        with pytest.raises(UsageError, match=said):
            Layout(**{**good, **change})  # type: ignore[arg-type]
    for wrong in (
        lambda: pose(text(10), 8, 7, 0),
        lambda: pose(text(3), 8, 16, 0, chunks=4),
        lambda: pose(text(10), 8, 16, 0, content="aligned"),
        lambda: pose(np.array([0.5]), 1, 2, 0),
        lambda: pose(np.array([-1]), 1, 2, 0),
        lambda: cream(text(100), 30, 240, 0),
        lambda: full_length(text(4), 5),
        lambda: full_length(np.array([], dtype=int)),
        lambda: from_chunks(text(9), [Chunk(0, 4, 0), Chunk(4, 4, 3)], 20),
        lambda: from_chunks(text(9), [Chunk(0, 4, 17)], 20),
        lambda: pack([]),
        lambda: pack_many([text(3)], 1),
        lambda: short_rows(0, 0.5, 1),
        lambda: row.weighted([1, 2]),
    ):
        with pytest.raises(UsageError):
            wrong()
