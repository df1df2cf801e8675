"""Rotations that depend on the length: what a batch would do to its texts, and that it is refused."""

from __future__ import annotations

import pytest
import torch

from ctxforge.calibrate.placement import collate, full_length, mixed_windows, model_inputs, pack, pose
from ctxforge.errors import UnsupportedError
from tests.calibrate.placement_models import difference, logits, model_of, text
from tests.verification.tiny import DYNAMIC, LONGROPE, YARN


def test_longrope_turns_short_texts_with_long_ones() -> None:
    model = model_of("llama", rope_parameters=LONGROPE)  # switches beyond 160 tokens
    short, long = full_length(text(40)), pose(text(300), 60, 256, 4)
    assert long.reach > 160
    alone = logits(model, model_inputs(short, model))
    # What transformers would compute: the short text turned by the long factors.
    together = model_inputs(collate([short, long]), model_of("llama"))
    assert difference(logits(model, together)[0, :40], alone[0]) > 1e-2
    for rows in (collate([short, long]), collate([pack([text(20), text(170)])])):
        with pytest.raises(UnsupportedError, match="two lists of factors"):
            model_inputs(rows, model)
    assert torch.equal(logits(model, model_inputs(short, model)), alone)
    model_inputs(collate([long, long]), model)
    one_list = model_of("llama", rope_parameters={**LONGROPE, "short_factor": LONGROPE["long_factor"]})
    model_inputs(collate([short, long]), one_list)


def test_dynamic_ntk_is_trained_within_its_length_only() -> None:
    model = model_of("llama", rope_parameters=DYNAMIC)  # trained at 64
    model_inputs(full_length(text(64)), model)
    with pytest.raises(UnsupportedError, match="longest batch so far"):
        model_inputs(full_length(text(65)), model)
    model_inputs(mixed_windows([text(40), text(90)], 130, 64), model_of("llama", rope_parameters=YARN))
