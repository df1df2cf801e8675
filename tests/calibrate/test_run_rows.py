"""Rows as the recipe wants them: where tokens stand, which of them count, and how rows meet in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxforge.calibrate.data import CacheHeader, Piece, PlannedRow, TokenCache, distinct, plan_batch, split
from ctxforge.calibrate.data.encode import Encoded
from ctxforge.calibrate.data.header import HEADER, SCHEMA, dump_header
from ctxforge.calibrate.data.writer import CacheWriter
from ctxforge.calibrate.placement import full_length, pack
from ctxforge.calibrate.recipes import CalibrationPlan, make_plan
from ctxforge.calibrate.run.batches import micro_batches
from ctxforge.calibrate.run.rows import lay_out
from ctxforge.calibrate.run.sources import RunData, mix
from ctxforge.errors import UsageError
from tests.calibrate.data_builders import synthetic
from tests.calibrate.run_builders import recipe

TRAINED, TARGET = 32, 128
PLACEMENTS = ("full-length", "pose", "cream", "randomised", "mixed-windows")


def plan_of(placement: str, *, trained: int = TRAINED, target: int = TARGET, **rows: Any) -> CalibrationPlan:
    given = {"placement": placement, "count": 8, "short_share": 0.5, **rows}
    if placement == "cream":
        given.setdefault("length", 64)  # its chunks want more than 8 tokens for each time the row fits the target
    return make_plan(recipe(rows=given), trained_length=trained, target_length=target, width=32)


def data_of(*caches: TokenCache, weights: Sequence[float | None] | None = None) -> RunData:
    return RunData(caches, tuple(weights or [None] * len(caches)), split(distinct(caches), 0.0))


def chat(folder: Path, length: int, spans: Sequence[tuple[int, int]]) -> TokenCache:
    """A cache of one chat of tokens 0, 1, ..., of which the assistant wrote `spans`."""
    folder.mkdir()
    with CacheWriter(folder) as writer:
        writer.add(Encoded(np.arange(length, dtype=np.uint16), np.array(spans, np.int64)), 1, length)
        files = writer.finish()
    counts = {"documents": 1, "tokens": length, "characters": length, "longest": length}
    made = {"key": "0" * 64, "source": {}, "content": "", "tokenizer": "", "filters": {}, "guard": None, "files": files}
    shape = {"vocabulary": 65536, "dtype": "uint16", "prefix": (), "end": None, "chat": True}
    (folder / HEADER).write_bytes(dump_header(CacheHeader(schema=SCHEMA, **made, **shape, **counts)))
    return TokenCache.open(folder)


@pytest.mark.parametrize("prefix", [(), (7,)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement(placement: str, prefix: tuple[int, ...], tmp_path: Path) -> None:
    cache = synthetic(tmp_path / "c", [700, 900, 60, 50, 20, 800], prefix=prefix)
    plan = plan_of(placement)
    mixture = mix(plan, data_of(cache))
    farthest, kinds = 0.0, set()
    for step in range(6):
        batch = plan_batch(mixture, plan.seed, step)
        for row in batch.rows:
            layout = lay_out(plan, mixture.caches, row, batch.stage)
            again = lay_out(plan, mixture.caches, row, batch.stage)
            assert np.array_equal(layout.positions, again.positions)
            assert np.array_equal(layout.ids, again.ids)
            kinds.add(row.kind)
            assert layout.positions.min() == 0 or (placement == "randomised" and row.kind == "long")
            # Fractional positions may end at the length itself.
            assert layout.positions.max() <= plan.target_length - (placement != "randomised")
            firsts = np.concatenate(([True], np.diff(layout.documents) == 1))
            assert (layout.weights[firsts] == 0).all()
            assert set(layout.weights.tolist()) <= {0.0, 1.0}
            if row.kind == "short":
                assert layout.length <= plan.short_length
                assert layout.contiguous
                assert (layout.positions[firsts] == 0).all()
                assert len(row.pieces) == layout.documents[-1] + 1
                # Its own rotation is the source's, where the recipe mixes both.
                assert layout.extended.all() == (placement != "mixed-windows")
                assert not layout.extended.any() or placement != "mixed-windows"
            else:
                farthest = max(farthest, layout.reach)
                assert layout.length == plan.stages[batch.stage].length
                assert not layout.isolated
                assert layout.extended.all()
                if prefix:
                    assert layout.ids[0] == prefix[0]
                assert layout.contiguous == (placement in ("full-length", "mixed-windows"))
            for document in range(int(layout.documents[-1]) + 1):
                here = layout.documents == document
                start = len(prefix)
                assert (layout.weights[here][:start] == 0).all()
                # Texts stand in their own order: ids of a document rise by 1 except at a chunk's seam.
                body = layout.ids[here][start:]
                assert (np.diff(body) >= 1).all()
    assert kinds == {"long", "short"}
    assert farthest > 0.9 * plan.target_length


def test_a_chunk_that_does_not_follow_is_not_learnt(tmp_path: Path) -> None:
    plan = plan_of("pose", short_share=0.0)
    mixture = mix(plan, data_of(synthetic(tmp_path / "c", [900, 800])))
    seams = 0
    for step in range(5):
        for row in plan_batch(mixture, 0, step).rows:
            layout = lay_out(plan, mixture.caches, row, 0)
            jumps = np.flatnonzero(np.diff(layout.ids) != 1) + 1
            assert len(jumps) <= 1
            seams += len(jumps)
            assert np.flatnonzero(layout.weights == 0).tolist() == [0, *jumps.tolist()]
    assert seams > 10


def test_a_pose_row_as_long_as_the_target_is_the_text_itself(tmp_path: Path) -> None:
    plan = plan_of("pose", target=TRAINED, short_share=0.0)
    mixture = mix(plan, data_of(synthetic(tmp_path / "c", [900])))
    for row in plan_batch(mixture, 0, 0).rows:
        layout = lay_out(plan, mixture.caches, row, 0)
        assert layout.positions.tolist() == list(range(TRAINED))
        assert (np.diff(layout.ids) == 1).all()
        assert layout.weights.tolist() == [0.0, *[1.0] * (TRAINED - 1)]


def test_rows_of_one_step_differ_and_seeds_matter(tmp_path: Path) -> None:
    plan = plan_of("pose", short_share=0.0)
    mixture = mix(plan, data_of(synthetic(tmp_path / "c", [900])))
    piece = (Piece(0, 0, 0, 160),)
    first, second = (lay_out(plan, mixture.caches, PlannedRow("long", piece, number), 0) for number in (0, 1))
    assert not np.array_equal(first.positions, second.positions)
    other = make_plan(plan.recipe, trained_length=TRAINED, target_length=TARGET, width=32, seed=1)
    third = lay_out(other, mixture.caches, PlannedRow("long", piece, 0), 0)
    assert not np.array_equal(first.positions, third.positions)


@pytest.mark.parametrize(
    ("policy", "counted"),
    [
        ("answers", [*range(1200, 1210), *range(1300, 1320)]),
        ("all", range(1, 1400)),
        # The first prompt has 1200 tokens and counts; what stands between the answers is short.
        ("long-prompts", [*range(1, 1210), *range(1300, 1320)]),
    ],
)
@pytest.mark.parametrize("placement", ["full-length", "pose"])
def test_which_tokens_of_a_chat_count(policy: str, counted: Sequence[int], placement: str, tmp_path: Path) -> None:
    cache = chat(tmp_path / "chat", 1400, [(1200, 1210), (1300, 1320)])
    made = recipe(
        rows={"placement": placement, "length": 1400 if placement == "full-length" else 700},
        objective={"train_on": policy},
    )
    plan = make_plan(made, trained_length=700, target_length=1400, width=32)
    layout = lay_out(plan, [cache], PlannedRow("long", (Piece(0, 0, 0, 1400),), 3), 0)
    expected = np.isin(layout.ids, counted)
    seams = [0, *(np.flatnonzero(np.diff(layout.ids) != 1) + 1).tolist()]
    expected[seams] = False
    assert np.array_equal(layout.weights > 0, expected)
    # A piece that begins within the long prompt keeps its verdict, which is the whole chat's.
    short = lay_out(plan, [cache], PlannedRow("short", (Piece(0, 0, 1150, 1250), Piece(0, 0, 1290, 1330)), 0), 0)
    expected = np.isin(short.ids, counted)
    expected[[0, 100]] = False
    assert np.array_equal(short.weights > 0, expected)


def test_plain_text_beside_chats_counts_whole(tmp_path: Path) -> None:
    caches = [synthetic(tmp_path / "plain", [300]), chat(tmp_path / "chat", 200, [(50, 60)])]
    for policy, inside in (("answers", 10), ("all", 99), ("long-prompts", 10)):
        plan = make_plan(recipe(objective={"train_on": policy}), trained_length=300, target_length=300, width=32)
        row = PlannedRow("short", (Piece(0, 0, 5, 105), Piece(1, 0, 0, 100)), 0)
        layout = lay_out(plan, caches, row, 0)
        assert [int(layout.weights[layout.documents == n].sum()) for n in (0, 1)] == [99, inside], policy


def text_length(lengths: Sequence[int], folder: Path, **rows: Any) -> int:
    mixture = mix(plan_of("pose", **rows), data_of(synthetic(folder, lengths)))
    return mixture.stages[0].stage.length


def test_how_long_a_text_chunks_are_cut_from(tmp_path: Path) -> None:
    # Up to five rows of 32 tokens, if half of the tokens that can be used are in documents so long.
    assert text_length([500, 400], tmp_path / "a") == 160
    assert text_length([500, 400], tmp_path / "b", reach=3.0) == 96
    assert text_length([500, 400], tmp_path / "c", reach=1.0) == 32
    # 60 + 60 + 60 tokens of 280 lie below 100: documents of 100 hold less than half, with those of 60 more.
    assert text_length([100, 60, 60, 60], tmp_path / "d") == 60
    assert text_length([190, 60, 60, 60], tmp_path / "e") == 160
    # Documents shorter than a row don't count at all.
    assert text_length([100, 60, *[20] * 50], tmp_path / "f") == 100
    assert text_length([33, 20], tmp_path / "g") == 33
    assert text_length([32, 20], tmp_path / "h") == 32
    with pytest.raises(UsageError, match="none reaches 32"):
        text_length([31, 20], tmp_path / "i")


def test_text_lengths_follow_the_stages(tmp_path: Path) -> None:
    plan = plan_of("full-length", first_share=0.5)
    mixture = mix(plan, data_of(synthetic(tmp_path / "c", [500, 400])))
    assert [one.stage.length for one in mixture.stages] == [TRAINED, TARGET]
    assert [one.stage.rows for one in mixture.stages] == [32, 8]
    assert [one.first_step for one in mixture.stages] == [0, 3]
    assert [one.short_length for one in mixture.stages] == [TRAINED, TRAINED]


def test_forward_passes_of_bounded_size() -> None:
    sizes = [10, 64, 30, 64, 12, 9]
    rows = [full_length(np.arange(size)) for size in sizes]
    mixed = [*rows, pack([np.arange(5), np.arange(6)]), pack([np.arange(20), np.arange(20)])]
    batches = micro_batches(mixed, 64)
    assert [[row.length for row in batch.rows] for batch in batches] == [[64], [64], [30, 12], [10, 9], [40], [11]]
    assert [batch.isolated for batch in batches] == [False] * 4 + [True] * 2
    for batch in batches:
        assert batch.ids.size <= 64
        assert batch.ids.shape == (len(batch.rows), max(row.length for row in batch.rows))
    # A row that is longer than what fits stands alone; padding counts, too.
    assert [len(batch.rows) for batch in micro_batches(rows, 8)] == [1] * 6
    assert [len(batch.rows) for batch in micro_batches(rows, 10**6)] == [6]
    padded = micro_batches(rows, 64, multiple=16)
    assert [batch.ids.shape for batch in padded] == [(1, 64), (1, 64), (2, 32), (2, 16)]
    assert [[row.length for row in batch.rows] for batch in padded] == [[64], [64], [30, 12], [10, 9]]
    assert micro_batches([], 64) == []
