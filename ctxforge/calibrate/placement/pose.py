"""PoSE: a short window whose chunks stand at positions up to L' (2309.10400, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ctxforge.calibrate.placement.layout import Chunk, Layout, from_chunks, token_array
from ctxforge.errors import UsageError

Content = Literal["sampled", "contiguous", "aligned"]
Lengths = Literal["share", "any"]
Seed = int | Sequence[int]


def pose_chunks(
    window: int,
    text_length: int,
    target: int,
    seed: Seed,
    *,
    chunks: int = 2,
    content: Content = "sampled",
    lengths: Lengths = "share",
) -> tuple[Chunk, ...]:
    """PoSE's chunks: lengths l_i with sum L_c, skips u_i ~ U{u_(i-1), ..., L' - L_c}, u_0 = 0 (equations 3 and 4).

    Chunk i stands at positions u_i + st_i + (0, ..., l_i - 1), st_i = l_0 + ... + l_(i-1), and holds the tokens
    v_i + st_i + (0, ..., l_i - 1) of the text, v_i ~ U{v_(i-1), ..., L_x - L_c}, v_0 = 0 (equation 5).

    Args:
        window: L_c, tokens trained on; a shorter text is taken whole.
        text_length: L_x, tokens of the text.
        target: L'.
        seed: the same seed gives the same chunks.
        chunks: N, at least 1.
        content: how v is chosen: "sampled" as above; "contiguous", v = 0; "aligned", v = u where the text is long
            enough, so that distances in the text are true (appendix A found little difference).
        lengths: of all chunks but the last, which gets the rest. "share": uniform from 1 to an even share of what is
            left, rounded up; with two chunks the published code's l_0 ~ U{1, ..., (L_c + 1) // 2}
            (dwzhu-pku/PoSE:src/train_pose.py `train_preprocess_function_pose`). "any": uniform over all that leaves
            the others a token; with two chunks the rule of the paper's coverage figure, l_0 ~ U{1, ..., L_c - 1}
            (appendix B). Neither source has a rule for more chunks.

    Raises:
        UsageError: no text, more chunks than tokens, a target shorter than the window, an aligned text that is too
            short for a skip.
    """
    size = min(window, text_length)
    if not 1 <= chunks <= size or target < size:
        raise UsageError(
            f"a window of {size} tokens in {chunks} chunks does not fit a target of {target}",
            "give a text, 1 chunk or more with a token each, and a target at least as long as the window",
        )
    if content == "aligned" and text_length < target:
        raise UsageError(
            f"a text of {text_length} tokens cannot be aligned with positions up to {target}",
            "give a text of the target length, or sampled content",
        )
    draw = np.random.default_rng(seed)
    found: list[Chunk] = []
    start = skip = shift = 0
    for number in range(chunks):
        left, rest = size - start, chunks - number - 1
        length = left
        if rest:
            most = (left + rest) // (rest + 1) if lengths == "share" else left - rest
            length = int(draw.integers(1, most, endpoint=True))
        if number:
            skip = int(draw.integers(skip, target - size, endpoint=True))
            if content == "sampled":
                shift = int(draw.integers(shift, text_length - size, endpoint=True))
        found.append(Chunk((skip if content == "aligned" else shift) + start, length, skip + start))
        start += length
    return tuple(found)


def pose(
    tokens: ArrayLike,
    window: int,
    target: int,
    seed: Seed,
    *,
    chunks: int = 2,
    content: Content = "sampled",
    lengths: Lengths = "share",
    learn: ArrayLike | None = None,
    train_seams: bool = False,
) -> Layout:
    """A PoSE row: `window` tokens of a text at positions up to `target`, at the cost of `window`.

    Args:
        tokens: the text, [L_x]; the published recipe gives five windows of it.
        window, target, seed, chunks, content, lengths: see `pose_chunks`.
        learn, train_seams: see `from_chunks`.

    Raises:
        UsageError: see `pose_chunks`, and a text that is no array of ids.
    """
    text = token_array(tokens)
    places = pose_chunks(window, len(text), target, seed, chunks=chunks, content=content, lengths=lengths)
    return from_chunks(text, places, target, learn=learn, train_seams=train_seams)
