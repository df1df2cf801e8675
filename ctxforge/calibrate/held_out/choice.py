"""Which step of a run was the best, and when to stop: by held-out losses and never by the training loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctxforge.calibrate.held_out.result import HeldOutResult
from ctxforge.errors import CheckpointError, UsageError


class Chooser:
    """Keeps the best of the measurements that it is given.

    A step's score in nats is its use of far context minus what its short regression exceeds the allowed by. Where no
    window goes beyond L0, minus the mean loss of the long windows stands for the use.

    Args:
        allowed_short: short regression that costs nothing: the threshold of the gate `short_nll` after calibration.
        patience: measurements in a row without a better score before `stop` says so; None for never.
        least: by how much a score must be better to count for `patience`. The best step is that of the highest score
            all the same.

    Attributes:
        best_step: of the highest score, the earliest where several have it; None before a finite one.
        best: its result.
        best_score: its score.

    Raises:
        UsageError: numbers below 0, or a patience below 1.
    """

    def __init__(self, allowed_short: float = 0.02, patience: int | None = 4, least: float = 0.0) -> None:
        if not (0 <= allowed_short < math.inf and 0 <= least < math.inf):
            raise UsageError(
                f"an allowed short regression of {allowed_short:g} and a least gain of {least:g} nats",
                "give finite numbers that are not negative",
            )
        if patience is not None and patience < 1:
            raise UsageError(f"a patience of {patience} measurements", "give at least 1, or none to never stop")
        self.allowed_short = allowed_short
        self.patience = patience
        self.least = least
        self.best_step: int | None = None
        self.best: HeldOutResult | None = None
        self.best_score: float | None = None
        # Steps and scores in the order in which they came; None for one that is not finite.
        self._scores: list[tuple[int, float | None]] = []

    def score(self, result: HeldOutResult) -> float:
        """The score of a result in nats; nan where one of its losses is not finite."""
        if not result.finite:
            return math.nan
        gain = result.use
        if gain is None:
            assert result.full_nll is not None
            gain = -result.full_nll
        return gain - max(0.0, result.short_regression - self.allowed_short)

    def add(self, step: int, result: HeldOutResult) -> bool:
        """Take a measurement after `step` steps; whether it is the best so far."""
        score = self.score(result)
        finite = math.isfinite(score)
        self._scores.append((step, score if finite else None))
        if not finite or (self.best_score is not None and self._rank(score, step) <= self._best_rank()):
            return False
        self.best_step, self.best, self.best_score = step, result, score
        return True

    @property
    def stop(self) -> str | None:
        """Why to stop now, in words; None to go on."""
        if not self._scores:
            return None
        step, last = self._scores[-1]
        if last is None:
            return f"a held-out loss at step {step} is not a finite number"
        since, counted, waited = step, -math.inf, 0
        for at, score in self._scores:
            if score is not None and score > counted + self.least:
                since, counted, waited = at, score, 0
            else:
                waited += 1
        if self.patience is None or waited < self.patience:
            return None
        return f"no better held-out score in {waited} measurements since step {since}"

    def document(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "allowed_short": self.allowed_short,
            "patience": self.patience,
            "least": self.least,
            "scores": [[step, score] for step, score in self._scores],
            "best_step": self.best_step,
            "best": None if self.best is None else self.best.document(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Chooser:
        """A chooser that goes on where the one of `document` was.

        Raises:
            CheckpointError: it is no such document.
        """
        try:
            found = cls(document["allowed_short"], document["patience"], document["least"])
            found._scores = [(int(step), None if score is None else float(score)) for step, score in document["scores"]]
            if document["best"] is not None:
                found.best = HeldOutResult.from_document(document["best"])
                found.best_step, found.best_score = int(document["best_step"]), found.score(found.best)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("this is no record of held-out scores", "resume from another checkpoint") from error
        return found

    def _best_rank(self) -> tuple[float, int]:
        assert self.best_score is not None
        assert self.best_step is not None
        return self._rank(self.best_score, self.best_step)

    @staticmethod
    def _rank(score: float, step: int) -> tuple[float, int]:
        return score, -step
