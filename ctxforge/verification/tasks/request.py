"""What is asked of a task: length, depth, seed, data."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from ctxforge.errors import UsageError


@dataclass(frozen=True)
class Request:
    """The parameters of one prompt; the same request gives the same ids, in any process.

    Attributes:
        task: name of the task.
        length: tokens of prompt and answer together.
        depth: stratum, 0 ... strata - 1.
        strata: number of depth strata.
        seed: of words, values and positions.
        data: the user's copy of the data set, for tasks that need one.
    """

    task: str
    length: int
    depth: int = 0
    strata: int = 10
    seed: int = 0
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"a prompt of {self.length} tokens cannot be built.", "Give a length of at least 1.")
        if not 0 <= self.depth < self.strata:
            raise UsageError(
                f"depth stratum {self.depth} lies outside 0 to {self.strata - 1}.", "Give a stratum in that range."
            )

    def at_depth(self, depth: int) -> Request:
        """The same at another depth."""
        return replace(self, depth=depth)

    def rng(self, purpose: str = "") -> random.Random:
        """Random numbers by task, seed and depth; other lengths get the same, so that they can be paired."""
        return random.Random(f"ctxforge {self.task} {self.depth}/{self.strata} {self.seed} {purpose}")
