"""When a test kills a process that writes: at any moment of its run, and, in turn, soon after its first byte."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator


class Kills:
    """At least ROUNDS kills of runs that last SECONDS; more while fewer than WANTED fell between first and last byte.

    STAGING gives the names of the folders that unfinished runs have written into. A machine's speed changes between
    runs, so moments that are drawn from one measured run may all fall too late: every second kill waits for the first
    byte instead.
    """

    def __init__(self, rounds: int, wanted: int, seconds: float, staging: Callable[[], set[str]]) -> None:
        self.rounds, self.wanted, self.seconds, self.staging = rounds, wanted, seconds, staging
        self.done = self.midway = 0
        self.stale: set[str] = set()

    def __iter__(self) -> Iterator[int]:
        while self.done < self.rounds or (self.midway < self.wanted and self.done < 4 * self.rounds):
            self.done += 1
            self.stale = self.staging()  # what an earlier kill left
            yield self.done

    def writing(self) -> bool:
        """Whether this round's run has begun to write and has not published yet."""
        return bool(self.staging() - self.stale)

    def wait(self, ended: Callable[[], bool]) -> None:
        """Sleep until this round's moment; call it when the run has started, and kill after it."""
        draw = random.Random(self.done)
        if self.done % 2:
            time.sleep(draw.uniform(0, 1.1 * self.seconds))
            return
        latest = time.monotonic() + 60
        while not self.writing() and not ended() and time.monotonic() < latest:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.3 * self.seconds))

    def count(self) -> None:
        """Note whether files were being written when the process ended; call it after the kill."""
        self.midway += self.writing()

    def enough(self) -> None:
        """Raises AssertionError where too few kills fell while files were written."""
        assert self.midway >= self.wanted, f"{self.midway} of {self.done} kills landed while files were being written"
