"""Rows without skips: one long text, several short ones, mixed windows, scattered positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctxforge.calibrate.placement.layout import Chunk, Layout, from_chunks, token_array
from ctxforge.calibrate.placement.pose import Seed
from ctxforge.calibrate.placement.random_steps import randomised_positions
from ctxforge.errors import UsageError


def full_length(tokens: ArrayLike, length: int | None = None, *, start: int = 0) -> Layout:
    """One text from token `start` on at positions 0, 1, ..., as PI, YaRN, ABF and LongLoRA train.

    LongLoRA's S2-Attn needs nothing else: its groups follow from the length.

    Args:
        tokens: the text.
        length: tokens of the row; all from `start` on by default.
        start: the first token.

    Raises:
        UsageError: a text that is too short.
    """
    text = token_array(tokens)
    size = len(text) - start if length is None else length
    return from_chunks(text, [Chunk(start, size, 0)], max(size, 1))


def pack(
    documents: Sequence[ArrayLike], length: int | None = None, *, extended: Sequence[bool] | None = None
) -> Layout:
    """Several texts in one row: positions start anew with each, and none sees another.

    Args:
        documents: texts, in the row's order.
        length: tokens of the row; the last document is cut to fit. Without it, as many as there are.
        extended: which documents are rotated with the target's table; all by default. See `Layout`.

    Raises:
        UsageError: no document, one without tokens, one that starts beyond the row's end, or flags that don't match.
    """
    texts = [token_array(document) for document in documents]
    flags = [True] * len(texts) if extended is None else list(extended)
    if not texts or len(flags) != len(texts):
        raise UsageError(f"{len(texts)} documents with {len(flags)} marks", "give at least one document, a mark each")
    if length is not None:
        before = sum(len(text) for text in texts[:-1])
        if before >= length:
            raise UsageError(f"a row of {length} tokens does not hold {len(texts)} documents", "give fewer")
        texts[-1] = texts[-1][: length - before]
    sizes = [len(text) for text in texts]
    firsts = np.concatenate(([0], np.cumsum(sizes[:-1]))).astype(np.int64)
    weights = np.ones(sum(sizes), dtype=np.float32)
    weights[firsts] = 0
    return Layout(
        np.concatenate(texts),
        np.concatenate([np.arange(size) for size in sizes]),
        np.repeat(np.arange(len(sizes)), sizes),
        weights,
        np.repeat(flags, sizes),
    )


def from_segments(
    ids: ArrayLike, segments: ArrayLike, *, learn: ArrayLike | None = None, trained_length: int | None = None
) -> Layout:
    """A row of texts that lie end to end already, as the data stage hands them over (`data.rows.RowTokens`).

    Args:
        ids: tokens of the row, [T].
        segments: which text each belongs to, [T]: 0, 1, ... in order.
        learn: weight of each token's loss, [T], or bool; 1 by default.
        trained_length: L0, for LongRoPE2's mixed windows: texts of at most L0 keep the source's own rotation.

    Raises:
        UsageError: arrays that don't match, or texts not numbered in order.
    """
    row, marks = token_array(ids), np.asarray(segments)
    edges = np.diff(marks)
    if marks.shape != row.shape or marks[0] != 0 or not np.isin(edges, (0, 1)).all():
        raise UsageError("segments that don't number the texts of a row 0, 1, ...", "give one number a token, in order")
    texts = np.split(row, np.flatnonzero(edges) + 1)
    packed = pack(texts) if trained_length is None else mixed_windows(texts, len(row), trained_length)
    return packed if learn is None else packed.weighted(learn)


def pack_many(documents: Sequence[ArrayLike], length: int) -> list[Layout]:
    """Rows of at most `length` tokens that hold all of `documents`: longest first, each into the fullest row it fits.

    Documents longer than a row are cut into pieces, each a document of its own. Nothing is drawn: the same documents
    give the same rows.

    Raises:
        UsageError: a row of less than two tokens, or a document without tokens.
    """
    if length < 2:
        raise UsageError(f"rows of {length} tokens", "give at least 2")
    texts = [token_array(document) for document in documents]
    pieces = [text[start : start + length] for text in texts for start in range(0, len(text), length)]
    rows: list[list[NDArray[np.int64]]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=len, reverse=True):
        fitting = [row for row, left in enumerate(room) if left >= len(piece)]
        if not fitting:
            rows.append([])
            room.append(length)
            fitting = [len(rows) - 1]
        row = min(fitting, key=lambda number: room[number])
        rows[row].append(piece)
        room[row] -= len(piece)
    return [pack(row) for row in rows]


def mixed_windows(documents: Sequence[ArrayLike], length: int, trained_length: int) -> Layout:
    """LongRoPE2's mixed windows: a row in which documents of at most L0 keep the source's own rotation.

    Longer documents are rotated with the target's table, and none sees another (2502.20082, section 3.3). A loop
    applies it with `rotations.two_rotations`, which picks the table token by token, or by giving each batch rows of one
    kind and swapping the table around its forward and its backward pass.

    Args:
        documents: texts, in the row's order.
        length: tokens of the row; the last document is cut to fit.
        trained_length: L0.

    Raises:
        UsageError: see `pack`.
    """
    row = pack(documents, length)
    long = np.bincount(row.documents) > trained_length
    return pack(documents, length, extended=long.tolist())


def randomised(tokens: ArrayLike, seed: Seed, *, length: int | None = None) -> Layout:
    """Giraffe's randomised positions: fractional, with a step of 1 on average (2308.10882).

    Positions go up to the row's length, which they can reach: see `random_steps.randomised_positions`.

    Args:
        tokens: the text.
        seed: the same seed gives the same positions.
        length: tokens of the row; all by default.

    Raises:
        UsageError: a text that is too short.
    """
    plain = full_length(tokens, length)
    entropy = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return Layout(
        plain.ids, randomised_positions(plain.length, int(entropy)), plain.documents, plain.weights, plain.extended
    )


def scattered(tokens: ArrayLike, target: int, seed: Seed, *, length: int | None = None) -> Layout:
    """Whole positions drawn from 0 to L' - 1 without repeats, sorted: PoSE with a token a chunk (RandPos).

    PoSE's paper finds it to damage the model (2309.10400, table 1;
    dwzhu-pku/PoSE:src/train_pose.py `train_preprocess_function_randomized`).

    Args:
        tokens: the text.
        target: L', at least the row's length.
        seed: the same seed gives the same positions.
        length: tokens of the row; all by default.

    Raises:
        UsageError: a text that is too short, or a target that is.
    """
    plain = full_length(tokens, length)
    if target < plain.length:
        raise UsageError(f"{plain.length} tokens do not fit {target} positions", "give a longer target")
    drawn = np.random.default_rng(seed).choice(target, plain.length, replace=False, shuffle=False)
    return Layout(plain.ids, np.sort(drawn), plain.documents, plain.weights, plain.extended)


def short_rows(rows: int, share: float, seed: Seed) -> NDArray[np.bool_]:
    """Which of a batch's rows hold short documents instead of long ones, bool [rows].

    As many as `share` says, rounded up or down so that it holds on average over seeds; which ones is drawn. Short
    context is what long training loses first.

    Raises:
        UsageError: a share outside 0 to 1, or fewer than one row.
    """
    if rows < 1 or not 0 <= share <= 1:
        raise UsageError(f"a share of {share:g} of {rows} rows", "give a share from 0 to 1 of at least one row")
    draw = np.random.default_rng(seed)
    # Rounded against float noise: 0.3 * 10 must be 3 rows for every seed.
    count = int(np.floor(round(share * rows, 9) + draw.random()))
    chosen = np.zeros(rows, dtype=np.bool_)
    chosen[draw.permutation(rows)[:count]] = True
    return chosen
