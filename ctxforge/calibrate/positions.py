"""Positions that a calibration gives its tokens so that short windows show the model long distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxforge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def randomised_positions(length: int, seed: int) -> NDArray[np.float64]:
    """Giraffe's randomised positions: running sums of steps from U(0, 2), shrunk where they would pass `length`.

    The expected step is 1, so distances are right on average and every fraction occurs. The published code shrinks
    but never stretches, starts at the first step and not at 0, and uses the positions as they are, unrounded
    (2308.10882; abacusai/Long-Context:python/models/interpolate.py `random_init_forward`).

    Args:
        length: tokens of the window, and the largest position.
        seed: the same seed gives the same positions.

    Returns:
        `length` positions in (0, length], increasing, float64.

    Raises:
        UsageError: a length below 1.
    """
    import numpy as np

    if length < 1:
        raise UsageError(f"a window of {length} tokens is not usable", "give a length of at least 1")
    # 1 - U lies in (0, 1], so that no step is 0 and positions increase.
    steps = 2 * (1 - np.random.default_rng(seed).random(length))
    sums = np.cumsum(steps)
    positions: NDArray[np.float64] = sums * (length / max(float(sums[-1]), length))
    return positions


@dataclass(frozen=True)
class Chunks:
    """Which tokens of a longer text PoSE takes, and where they stand.

    Attributes:
        first: tokens of the first chunk, taken from the text's start, at positions 0, 1, ...
        second: tokens of the second chunk.
        text_start: where the second chunk begins in the text.
        position_start: the position of its first token.
    """

    first: int
    second: int
    text_start: int
    position_start: int

    def positions(self) -> NDArray[np.int64]:
        """The position of each token of the window, first chunk and second, int64."""
        import numpy as np

        return np.concatenate(
            [np.arange(self.first), np.arange(self.position_start, self.position_start + self.second)]
        ).astype(np.int64)

    def tokens(self) -> NDArray[np.int64]:
        """The index in the text of each token of the window, int64."""
        import numpy as np

        return np.concatenate(
            [np.arange(self.first), np.arange(self.text_start, self.text_start + self.second)]
        ).astype(np.int64)


def pose_chunks(window: int, text_length: int, target_length: int, seed: int) -> Chunks:
    """PoSE's two chunks: a window of `window` tokens whose positions reach up to `target_length`.

    The first chunk has 1 to (window + 1)/2 tokens; the second follows it anywhere in the text, and by a skip of 0 to
    target_length - window in position, all uniform (2309.10400, section 3;
    dwzhu-pku/PoSE:src/train_pose.py `train_preprocess_function_pose`).

    Args:
        window: tokens trained on; a shorter text is taken whole.
        text_length: tokens of the text.
        target_length: L'.
        seed: the same seed gives the same chunks.

    Raises:
        UsageError: a window that the target doesn't hold, or an empty text or window.
    """
    import numpy as np

    size = min(window, text_length)
    if size < 1 or target_length < size:
        raise UsageError(
            f"a window of {size} tokens does not fit a target of {target_length}",
            "give a text, and a target at least as long as the window",
        )
    draw = np.random.default_rng(seed)
    first = int(draw.integers(1, (size + 1) // 2, endpoint=True))
    end = int(draw.integers(size, text_length, endpoint=True))
    skip = int(draw.integers(0, target_length - size, endpoint=True))
    return Chunks(first, size - first, end - (size - first), first + skip)
