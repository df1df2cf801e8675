"""The layout of one training row: which token stands where, who sees whom, what counts in the loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctxforge.errors import UsageError

_REMEDY = "build rows with ctxforge.calibrate.placement's builders"


@dataclass(frozen=True)
class Chunk:
    """A stretch of a text, and where it stands: token `text_start + i` at position `position_start + i`.

    Attributes:
        text_start: index in the text of its first token.
        length: its tokens.
        position_start: position of its first token.
    """

    text_start: int
    length: int
    position_start: int


@dataclass(frozen=True)
class Run:
    """Tokens `start` to `stop - 1` of a row: one document, positions that rise by 1."""

    start: int
    stop: int
    document: int


@dataclass(frozen=True, eq=False)
class Layout:
    """One row of a training batch. All arrays have one entry a token, [T], and cannot be written to.

    A token attends to itself and to earlier tokens of its own document, at the distance of their positions. A layer
    with a window W sees those less than W positions away, since at use no such layer ever sees a farther one.

    Attributes:
        ids: token ids, int64.
        positions: where each stands, int64, or float64 for fractional ones; rising within a document, never negative.
        documents: number of each token's document, int64: 0, 1, ... in order of appearance.
        weights: weight of the loss of predicting this token from those before it, float32; 0 for the first of a
            document, which nothing predicts.
        extended: whether the token is rotated with the target's rotary table (True) or with the source's own one, bool.
            Differs within a batch for LongRoPE2's mixed windows alone; see `rotations.two_rotations`.
    """

    ids: NDArray[np.int64]
    positions: NDArray[Any]
    documents: NDArray[np.int64]
    weights: NDArray[np.float32]
    extended: NDArray[np.bool_]

    def __post_init__(self) -> None:
        fractional = np.asarray(self.positions).dtype.kind == "f"
        kinds = {"ids": np.int64, "documents": np.int64, "weights": np.float32, "extended": np.bool_}
        for name, kind in {**kinds, "positions": np.float64 if fractional else np.int64}.items():
            array: NDArray[Any] = np.array(getattr(self, name), dtype=kind)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _check(self)

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.ids)

    @property
    def reach(self) -> float:
        """The largest position plus 1: the context length that the row stands for."""
        return float(self.positions.max()) + 1

    @property
    def isolated(self) -> bool:
        """Whether the row holds several documents, which must not see each other."""
        return bool(self.documents[-1] > 0)

    @property
    def contiguous(self) -> bool:
        """Whether positions rise by 1 within every document."""
        return bool((np.diff(self.positions)[np.diff(self.documents) == 0] == 1).all())

    def runs(self) -> tuple[Run, ...]:
        """The stretches of contiguous positions: PoSE's chunks, or packed documents."""
        breaks = (np.diff(self.documents) != 0) | (np.diff(self.positions) != 1)
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), self.length]
        return tuple(Run(start, stop, int(self.documents[start])) for start, stop in itertools.pairwise(edges))

    def weighted(self, weights: ArrayLike) -> Layout:
        """The same row with `weights` [T] multiplied onto its own: a loss on answers only, or LongCE's weights.

        Raises:
            UsageError: not one finite weight >= 0 a token.
        """
        given = np.asarray(weights, dtype=np.float32)
        if given.shape != self.weights.shape:
            raise UsageError(f"{given.shape} weights for a row of {self.length} tokens", "give one a token")
        return replace(self, weights=self.weights * given)


def from_chunks(
    tokens: ArrayLike,
    chunks: Sequence[Chunk],
    target: int,
    *,
    learn: ArrayLike | None = None,
    train_seams: bool = False,
) -> Layout:
    """A row of one document made of stretches of `tokens`, each where its chunk says.

    Args:
        tokens: the text, [N].
        chunks: at least one; later ones stand at later positions.
        target: L'; every position is below it.
        learn: weight of the loss of each token of the text, [N], or bool; 1 by default.
        train_seams: whether the first token of a chunk whose text does not follow on the chunk before counts in the
            loss. It cannot be foreseen there; published code counts it all the same.

    Raises:
        UsageError: a chunk outside the text or the target, without tokens, or one that overlaps the one before it; not
            one weight a token.
    """
    text = token_array(tokens)
    learned = np.ones(len(text), dtype=np.float32) if learn is None else np.asarray(learn, dtype=np.float32)
    if learned.shape != text.shape:
        raise UsageError(f"{learned.shape} weights for a text of {len(text)} tokens", "give one a token")
    if not chunks:
        raise UsageError("a row without chunks", "give at least one")
    weights: list[NDArray[np.float32]] = []
    end_text, end_position = None, 0
    for number, chunk in enumerate(chunks):
        if chunk.length < 1 or chunk.text_start < 0 or chunk.text_start + chunk.length > len(text):
            raise UsageError(f"chunk {number} is {chunk}: outside a text of {len(text)} tokens", "choose another")
        if chunk.position_start < end_position or chunk.position_start + chunk.length > target:
            raise UsageError(
                f"chunk {number} is {chunk}: not between position {end_position} and the target {target}",
                "let chunks follow one another and end within the target",
            )
        counts = learned[chunk.text_start : chunk.text_start + chunk.length].copy()
        counts[0] *= 0 if number == 0 else train_seams or chunk.text_start == end_text
        weights.append(counts)
        end_text, end_position = chunk.text_start + chunk.length, chunk.position_start + chunk.length
    size = sum(chunk.length for chunk in chunks)
    return Layout(
        np.concatenate([text[c.text_start : c.text_start + c.length] for c in chunks]),
        np.concatenate([np.arange(c.position_start, c.position_start + c.length) for c in chunks]),
        np.zeros(size, dtype=np.int64),
        np.concatenate(weights),
        np.ones(size, dtype=np.bool_),
    )


def token_array(tokens: ArrayLike) -> NDArray[np.int64]:
    """Token ids as int64 [N].

    Raises:
        UsageError: not a flat array of whole numbers >= 0, or an empty one.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise UsageError(f"tokens of shape {array.shape} and type {array.dtype}", "give a flat array of token ids")
    if array.min() < 0:
        raise UsageError(f"a token id of {array.min()}", "give ids from the tokenizer")
    return array.astype(np.int64)


def _check(layout: Layout) -> None:
    shapes = {layout.ids.shape, layout.positions.shape, layout.documents.shape}
    if len(shapes | {layout.weights.shape, layout.extended.shape}) != 1 or layout.ids.ndim != 1 or layout.length < 1:
        raise UsageError("a row's arrays are not flat, of one length, with at least one token", _REMEDY)
    steps = np.diff(layout.documents)
    if layout.documents[0] != 0 or not np.isin(steps, (0, 1)).all():
        raise UsageError("documents of a row are not numbered 0, 1, ... in order", _REMEDY)
    if not np.isfinite(layout.positions).all() or layout.positions.min() < 0:
        raise UsageError("a position of a row is negative or not finite", _REMEDY)
    if not (np.diff(layout.positions)[steps == 0] > 0).all():
        raise UsageError("positions do not rise within a document", _REMEDY)
    if not np.isfinite(layout.weights).all() or layout.weights.min() < 0:
        raise UsageError("a loss weight is negative or not finite", "give weights >= 0")
    first = np.concatenate(([True], steps == 1))
    if layout.weights[first].any():
        raise UsageError("the first token of a document has a loss weight: nothing predicts it", "give it weight 0")
