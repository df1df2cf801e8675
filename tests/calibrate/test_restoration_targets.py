"""Which tokens of a row are held to the source's states, and where these tokens stand in the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ctxforge.calibrate.objectives.restoration import Restored, Teacher
from ctxforge.calibrate.placement import Layout, collate, cream, full_length, mixed_windows, pack, pose, randomised
from ctxforge.calibrate.recipes import CalibrationPlan, find_recipe, make_plan
from ctxforge.calibrate.run.restoring import restored
from tests.calibrate.restoration_builders import plain_states
from tests.calibrate.run_builders import SIZES, TRAINED, recipe

TARGET = 128
WINDOW = 8


def plan(**rows: Any) -> CalibrationPlan:
    asked = recipe(rows=rows, objective={"restoration": 2.0})
    return make_plan(asked, trained_length=TRAINED, target_length=TARGET, width=32)


def teacher(*, window: int | None = None) -> Teacher:
    torch.manual_seed(0)
    if window is None:
        return Teacher(LlamaForCausalLM(LlamaConfig(**SIZES)))
    return Teacher(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)))


def text(length: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, length)


def apart(found: Restored, row: int, start: int, stop: int, expected: list[torch.Tensor]) -> float:
    """Largest difference of a stretch of a row's targets from states [stop - start, d], relative to the largest."""
    assert bool(found.tokens[row, start:stop].all())
    return max(
        float((ours[row, start:stop] - theirs[: stop - start]).abs().max() / theirs.abs().max())
        for ours, theirs in zip(found.states, expected, strict=True)
    )


def of(row: Layout, source: Teacher, **rows: Any) -> Restored:
    return restored(plan(**rows), source, collate([row]), 2.0)


def counts(found: Restored) -> list[int]:
    """Tokens that count, which are the first ones of each row."""
    assert found.weight == 2.0
    sizes = [int(size) for size in found.tokens.sum(1)]
    for row, size in zip(found.tokens, sizes, strict=True):
        assert bool(row[:size].all())
    return sizes


def test_packed_documents_stand_each_from_0_and_unseen_by_the_others() -> None:
    source = teacher()
    first, second, third = text(9, 1), text(12, 2), text(7, 3)
    found = restored(plan(), source, collate([pack([first, second, third]), pack([third])]), 2.0)
    assert counts(found) == [28, 7]
    for row, start, stop, ids in ((0, 0, 9, first), (0, 9, 21, second), (0, 21, 28, third), (1, 0, 7, third)):
        assert apart(found, row, start, stop, plain_states(source.model, ids)) < 1e-5
    # Another first document changes its own targets and no others; as one text they would be others.
    changed = of(pack([text(9, 4), second, third]), source)
    for one, other in zip(found.states, changed.states, strict=True):
        assert torch.allclose(one[0, 9:], other[0, 9:], rtol=1e-5, atol=1e-5)
        assert (one[0, :9] - other[0, :9]).abs().max() > 0.1
    joined = plain_states(source.model, np.concatenate([first, second]))
    assert apart(found, 0, 9, 21, [one[9:] for one in joined]) > 0.05


def test_of_a_contiguous_text_whose_positions_jump_the_source_reads_no_jump() -> None:
    source, ids = teacher(), text(TRAINED)
    row = pose(ids, TRAINED, TARGET, 5, content="contiguous")
    assert len(row.runs()) == 2
    assert row.positions[-1] > TRAINED
    found = of(row, source, placement="pose", content="contiguous", length="trained")
    assert counts(found) == [TRAINED]
    assert np.array_equal(row.ids, ids)
    assert apart(found, 0, 0, TRAINED, plain_states(source.model, ids)) < 1e-5
    # Where the row stands, the source would say something else behind the jump, and the same before it.
    seam = row.runs()[0].stop
    jumped = plain_states(source.model, ids, row.positions)
    assert apart(found, 0, 0, seam, jumped) < 1e-5
    assert apart(found, 0, seam, TRAINED, [one[seam:] for one in jumped]) > 0.05


@pytest.mark.parametrize(("placement", "content"), [("pose", "sampled"), ("cream", "sampled"), ("cream", "contiguous")])
def test_of_chunks_from_different_places_the_first_counts(placement: str, content: str) -> None:
    """CREAM's chunks never follow on one another, whatever `content` says of PoSE's."""
    source, ids, size = teacher(), text(5 * TRAINED), 3 * TRAINED // 4
    if placement == "pose":
        row = pose(ids, size, TARGET, 4)
    else:
        size = 2 * TRAINED
        made = (cream(ids, size, TARGET, seed) for seed in range(20))
        row = next(row for row in made if len(row.runs()) == 3)
    seam = row.runs()[0].stop
    assert 2 <= seam < size
    found = of(row, source, placement=placement, content=content, length=size)
    assert counts(found) == [seam]
    assert apart(found, 0, 0, seam, plain_states(source.model, ids[:seam])) < 1e-5
    # A packed row among them is held whole, each document for itself.
    packed = of(pack([text(6), text(9)]), source, placement=placement, content=content, length=size)
    assert counts(packed) == [15]


def test_of_a_longer_row_the_trained_length_counts() -> None:
    source, ids = teacher(), text(TARGET)
    found = restored(plan(), source, collate([full_length(ids), full_length(ids[:20])]), 2.0)
    assert counts(found) == [TRAINED, 20]
    assert found.states[0].shape[1] == TRAINED
    whole = plain_states(source.model, ids)
    assert apart(found, 0, 0, TRAINED, whole) < 1e-5
    assert apart(found, 1, 0, 20, whole) < 1e-5


def test_mixed_windows_and_randomised_positions() -> None:
    source, long, short = teacher(), text(2 * TRAINED), text(11, 1)
    rows = [mixed_windows([long], len(long), TRAINED), mixed_windows([short, short], 22, TRAINED)]
    assert [bool(row.extended.any()) for row in rows] == [True, False]
    found = restored(plan(placement="mixed-windows"), source, collate(rows), 2.0)
    assert counts(found) == [TRAINED, 22]
    assert apart(found, 0, 0, TRAINED, plain_states(source.model, long)) < 1e-5
    for start in (0, 11):
        assert apart(found, 1, start, start + 11, plain_states(source.model, short)) < 1e-5
    scattered = randomised(long, 3)
    assert scattered.positions.dtype.kind == "f"
    found = of(scattered, source, placement="randomised")
    assert counts(found) == [TRAINED]
    assert apart(found, 0, 0, TRAINED, plain_states(source.model, long)) < 1e-5


def test_behind_a_jump_a_window_sees_less_than_the_sources() -> None:
    """There the source's states can't be had: a window counts positions. Before the jump they can."""
    source, ids = teacher(window=WINDOW), text(TRAINED)
    asked = {"placement": "pose", "content": "contiguous", "length": "trained"}
    row = pose(ids, TRAINED, TARGET, 5, content="contiguous")
    seam = row.runs()[0].stop
    assert row.positions[seam] - seam > WINDOW
    assert counts(of(row, source, **asked)) == [seam]
    plain = full_length(ids)
    assert counts(of(plain, source, **asked)) == [TRAINED]
    assert counts(of(pack([ids[:20], ids[20:]]), source, **asked)) == [TRAINED]
    # A window that reaches over all of the row hides nothing, however far the jump.
    assert counts(of(row, teacher(window=2 * TARGET), **asked)) == [TRAINED]
    assert counts(of(randomised(ids, 3), source, placement="randomised")) == [TRAINED]


def test_a_row_of_sampled_content_is_cut_from_a_longer_text() -> None:
    def length(**rows: Any) -> int:
        return plan(length="trained", reach=4.0, **rows).stages[0].text_length

    assert length(placement="pose", content="sampled") == 4 * TRAINED
    assert length(placement="pose", content="contiguous") == TRAINED
    assert length(placement="cream", content="contiguous") == 4 * TRAINED
    assert length(placement="full-length") == TRAINED
    quick = make_plan(find_recipe("quick"), trained_length=TRAINED, target_length=TARGET, width=32)
    assert (quick.stages[0].length, quick.stages[0].text_length) == (TRAINED, TRAINED)
    assert quick.recipe.objective.restoration > 0
