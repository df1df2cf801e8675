"""Positions for calibration: Giraffe's random gaps and PoSE's chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.placement import pose_chunks
from ctxforge.calibrate.placement.random_steps import randomised_positions
from ctxforge.errors import UsageError


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 4096), seed=st.integers(0, 2**32))
def test_random_positions_increase_within_the_window(length: int, seed: int) -> None:
    positions = randomised_positions(length, seed)
    assert positions.shape == (length,)
    assert positions[0] > 0
    assert positions[-1] <= length * (1 + 1e-12)
    assert (np.diff(positions) > 0).all()
    assert np.diff(positions).max(initial=0) <= 2
    assert np.array_equal(positions, randomised_positions(length, seed))


def test_random_positions_shrink_but_never_stretch() -> None:
    ends = np.array([randomised_positions(1024, seed)[-1] for seed in range(400)])
    # Sum of 1024 draws from U(0, 2): mean 1024, deviation 18.5; half of the sums pass 1024 and are shrunk to it.
    assert (ends > 1024 - 1e-6).mean() == pytest.approx(0.5, abs=0.08)
    assert ends[ends < 1024 - 1e-6].std() > 5
    steps = np.concatenate([np.diff(randomised_positions(1024, seed)) for seed in range(20)])
    assert steps.mean() == pytest.approx(1.0, abs=0.02)
    assert steps.std() == pytest.approx(2 / np.sqrt(12), abs=0.02)
    assert not np.array_equal(randomised_positions(64, 1), randomised_positions(64, 2))


@settings(max_examples=100, deadline=None)
@given(
    window=st.integers(2, 2048), text=st.integers(2, 16384), stretch=st.integers(0, 100000), seed=st.integers(0, 2**32)
)
def test_pose_chunks_fit(window: int, text: int, stretch: int, seed: int) -> None:
    size = min(window, text)
    chunks = pose_chunks(window, text, size + stretch, seed)
    positions = np.concatenate([np.arange(c.position_start, c.position_start + c.length) for c in chunks])
    tokens = np.concatenate([np.arange(c.text_start, c.text_start + c.length) for c in chunks])
    assert len(positions) == len(tokens) == size
    assert positions[0] == tokens[0] == 0
    for values, end in ((positions, size + stretch), (tokens, text)):
        assert values[-1] < end
        assert (np.diff(values) > 0).all()
        assert (np.diff(values) != 1).sum() <= 1
    assert 1 <= chunks[0].length <= (size + 1) // 2


def test_pose_reaches_every_distance_about_evenly() -> None:
    seconds = [pose_chunks(64, 4096, 1024, seed)[1] for seed in range(2000)]
    skips = [chunk.position_start for chunk in seconds]
    lasts = np.array([chunk.position_start + chunk.length - 1 for chunk in seconds])
    assert lasts.min() < 80
    assert lasts.max() > 1010
    assert lasts.mean() == pytest.approx(63 + 960 / 2, rel=0.05)
    assert len(set(skips)) > 500


def test_impossible_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="not usable"):
        randomised_positions(0, 1)
    with pytest.raises(UsageError, match="does not fit"):
        pose_chunks(64, 64, 32, 1)
    with pytest.raises(UsageError, match="does not fit"):
        pose_chunks(64, 0, 128, 1)
