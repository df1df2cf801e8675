"""Batches: padding, targets, order."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.calibrate.placement import by_length, collate, full_length, model_inputs, next_tokens, pack, pose
from ctxforge.errors import UsageError
from tests.calibrate.placement_models import logits, model_of, text


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), multiple=st.integers(1, 9))
def test_rows_are_padded_on_the_right(sizes: list[int], multiple: int) -> None:
    rows = [pack([text(size), text(4)]) for size in sizes]
    batch = collate(rows, pad_id=7, multiple=multiple)
    assert batch.ids.shape[1] % multiple == 0
    assert 0 <= batch.ids.shape[1] - max(row.length for row in rows) < multiple
    assert batch.tokens == sum(sizes) + 4 * len(sizes)
    for index, row in enumerate(rows):
        padding = batch.documents[index] == -1
        assert padding.sum() == batch.ids.shape[1] - row.length
        assert (batch.ids[index, padding] == 7).all()
        assert not batch.weights[index, padding].any()
        assert np.array_equal(batch.positions[index, padding], np.arange(padding.sum()))
        for name in ("ids", "positions", "documents", "weights", "extended"):
            assert np.array_equal(getattr(batch, name)[index, ~padding], getattr(row, name))


def test_targets_are_shifted_within_texts() -> None:
    row = pack([[11, 12, 13], [21, 22]])
    labels, weights = next_tokens(collate([row.weighted([1, 2, 1, 1, 0.5]), full_length([31, 32])]))
    assert labels.tolist() == [[12, 13, -100, 22, -100], [32, -100, -100, -100, -100]]
    assert weights.tolist() == [[2, 1, 0, 0.5, 0], [1, 0, 0, 0, 0]]


def test_losses_of_a_batch_are_those_of_its_texts() -> None:
    """The sum over a packed, padded batch is the sum over texts by transformers' own loss."""
    model = model_of("llama", "sdpa")
    texts = [text(20, 1), text(9, 2), text(33, 3)]
    batch = collate([pack(texts[:2]), full_length(texts[2])])
    labels, weights = next_tokens(batch)
    found = logits(model, model_inputs(batch, model))
    losses = F.cross_entropy(found.flatten(0, 1), torch.tensor(labels).flatten(), reduction="none")
    total = float((losses * torch.tensor(weights).flatten()).sum())
    alone = [torch.tensor(one)[None] for one in texts]
    wanted = sum(float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in alone)
    assert total == pytest.approx(wanted, rel=1e-5)
    assert int((weights > 0).sum()) == 19 + 8 + 32


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), max_size=20), size=st.integers(1, 5))
def test_like_lengths_go_together(lengths: list[int], size: int) -> None:
    batches = by_length(lengths, size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    order = [(-lengths[row], row) for batch in batches for row in batch]
    assert order == sorted(order)


def test_rows_are_built_without_torch() -> None:
    code = "import sys, ctxforge.calibrate.placement as p; p.pose(range(9), 4, 8, 1); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_batches_are_refused() -> None:
    row = pose(text(30), 10, 40, 1)
    for wrong in (
        lambda: collate([]),
        lambda: collate([row], length=9),
        lambda: collate([row], multiple=0),
        lambda: collate([row], pad_id=-100),
        lambda: by_length([1], 0),
    ):
        with pytest.raises(UsageError):
            wrong()
