"""Rows on ctxforge's own attention systems, and on LongLoRA's S2-Attn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctxforge.attention.shifted_sparse import shifted_sparse_attention
from ctxforge.calibrate.placement import (
    Layout,
    check_isolation,
    collate,
    full_length,
    model_inputs,
    pack,
    pose,
    randomised,
)
from ctxforge.errors import UnsupportedError
from tests.attention.battery import attach
from tests.calibrate.placement_models import difference, logits, model_of
from tests.modeling.emitted import remote, save_stock


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 96, length)


PACKED = [text(90, 1), text(21, 2), text(40, 3)]


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk", "lm-infinite"])
def test_attached_models_take_packed_and_padded_rows(name: str, tmp_path: Path) -> None:
    settings = {
        "self-extend": "window=12,group=6",
        "dual-chunk": "chunk=20,local=6",
        "lm-infinite": "window=16,sinks=4",
    }
    model = remote(attach(save_stock("llama", tmp_path / "stock"), name, settings[name], tmp_path / "out"))
    alone = [logits(model, model_inputs(full_length(part), model))[0] for part in PACKED]
    packed = model_inputs(pack(PACKED), model)
    assert packed["attention_mask"] is None
    done = 0
    for part, wanted in zip(PACKED, alone, strict=True):
        assert difference(logits(model, packed)[0, done : done + len(part)], wanted) < 1e-5
        done += len(part)
    batch = collate([full_length(part) for part in PACKED])
    for found, part, wanted in zip(logits(model, model_inputs(batch, model)), PACKED, alone, strict=True):
        assert difference(found[: len(part)], wanted) < 1e-5
    mixed = collate([pack(PACKED), full_length(PACKED[0])])
    assert difference(logits(model, model_inputs(mixed, model))[1, :90], alone[0]) < 1e-5
    skipping = pose(text(300), 60, 120, 3)
    found = check_isolation(model, [pack(PACKED), skipping][:1])
    assert found.walls == 4
    assert check_isolation(model, skipping).out_of_sight == 1
    parts = [skipping, full_length(text(10))]
    joined = Layout(
        *(np.concatenate([getattr(part, key) for part in parts]) for key in ("ids", "positions")),
        np.repeat([0, 1], [60, 10]),
        np.concatenate([part.weights for part in parts]),
        np.ones(70, dtype=bool),
    )
    for row, said in ((joined, "every jump for a new text"), (randomised(text(30), 1), "whole positions")):
        with pytest.raises(UnsupportedError, match=said):
            model_inputs(row, model)


def test_shifted_groups_keep_texts_apart() -> None:
    """Groups count from the row's start, so that a later text has other ones than alone; no text sees another."""
    model = model_of("llama").train()
    with shifted_sparse_attention(model, 16):
        wanted = [logits(model, model_inputs(full_length(part), model))[0] for part in PACKED]
        found = logits(model, model_inputs(collate([pack(PACKED), full_length(PACKED[0])]), model))
        assert difference(found[0, :90], wanted[0]) < 1e-5
        assert difference(found[1, :90], wanted[0]) < 1e-5
        # A text that starts where a group does, with both halves of the heads.
        aligned = logits(model, model_inputs(pack([text(64, 4), PACKED[2]]), model))[0, 64:]
        assert difference(aligned[16:], wanted[2][16:]) < 1e-5
        assert check_isolation(model, pack(PACKED)).walls == 4
    assert difference(logits(model, model_inputs(full_length(PACKED[0]), model))[0], wanted[0]) > 1e-3
