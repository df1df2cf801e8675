"""Which step of a run was the best, and when to stop: by held-out losses and never by the training loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctxforge.calibrate.held_out.result import HeldOutResult, Windows
from ctxforge.errors import CheckpointError, UsageError


class Chooser:
    """Keeps the best of the measurements that it is given.

    A step's score in nats is its use of far context minus what its short regression exceeds the allowed by. Where no
    window goes beyond L0, minus the mean loss of the long windows stands for the use.

    The best is the latest measurement whose score is not below the highest by more than the standard error of that
    difference, paired over windows (the one-standard-error rule: Breiman et al. 1984, section 3.4.3), and above that
    of the first measurement. A few windows don't tell such scores apart, and a later step has seen more and, as rates
    fall, jumps less.

    Args:
        allowed_short: short regression that costs nothing: the threshold of the gate `short_nll` after calibration.
        patience: measurements in a row without a better score before `stop` says so; None for never.
        least: by how much a score must be better to count for `patience`.

    Attributes:
        best_step: of the best; None before a finite score.
        best: its result.
        best_score: its score.
        top_step, top: of the highest score, the earliest where several have it.

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
        self.top_step: int | None = None
        self.top: HeldOutResult | None = None
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
        return gain - self._excess(result)

    def add(self, step: int, result: HeldOutResult) -> bool:
        """Take a measurement after `step` steps; whether it is now the best."""
        score = self.score(result)
        finite = math.isfinite(score)
        self._scores.append((step, score if finite else None))
        if not finite:
            return False
        if self.top is None or score > self.score(self.top):
            self.top_step, self.top = step, result
        elif not (score > self._first() and self.score(self.top) - score <= self._error(result, self.top)):
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
            "top_step": self.top_step,
            "top": None if self.top is None else self.top.document(),
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
                found.top = HeldOutResult.from_document(document["top"])
                found.top_step = int(document["top_step"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("this is no record of held-out scores", "resume from another checkpoint") from error
        return found

    def _excess(self, result: HeldOutResult) -> float:
        return max(0.0, result.short_regression - self.allowed_short)

    def _first(self) -> float:
        """The score before the first step, which a step must beat to be worth its weights."""
        return next(score for _, score in self._scores if score is not None)

    def _error(self, one: HeldOutResult, other: HeldOutResult) -> float:
        """Standard error of the difference of two scores on the same windows; 0 where it can't be known."""
        parts = [paired_error(one.long_windows, other.long_windows)]
        if self._excess(one) or self._excess(other):
            parts.append(paired_error(one.short_windows, other.short_windows))
        return math.hypot(*parts)


def paired_error(one: Windows, other: Windows) -> float:
    """Standard error of the difference of two weighted mean losses on the same windows; 0 below two windows.

    With weights w and differences d of n windows: sqrt(n / (n - 1) sum(w^2 (d - mean)^2)) / sum(w).
    """
    count = min(len(one), len(other))
    if count < 2 or len(one) != len(other):
        return 0.0
    weights = [tokens for _, tokens in one]
    apart = [ours - theirs for (ours, _), (theirs, _) in zip(one, other, strict=True)]
    mean = sum(w * d for w, d in zip(weights, apart, strict=True)) / sum(weights)
    spread = sum((w * (d - mean)) ** 2 for w, d in zip(weights, apart, strict=True))
    return math.sqrt(count / (count - 1) * spread) / sum(weights)
