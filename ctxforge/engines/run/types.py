"""What running an engine tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["agrees", "differs", "not installed", "failed", "can't tell"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RunResult:
    """One engine's log-probabilities against the plan's.

    Attributes:
        engine: a name of `RUNNERS`.
        version: as the engine names itself; None where it did not run.
        status: `can't tell` is an agreement on a text that would hardly show a misread config either.
        max_difference, mean_difference: of |log p - log p'| over the compared tokens, in nats.
        tokens: the compared tokens' number.
        detail: one line: what it seems to compute instead, the cause of a failure, remarks.
        control_difference: how far the nearest plain misreading (scaling ignored, base ignored) is from the plan, the
            same maximum over the same tokens, in nats; None where the config scales nothing.
        tolerance: what `agrees` allows, in nats.
        served_length: the longest prompt that the engine says it takes, where it says so.
    """

    engine: str
    version: str | None
    status: Status
    max_difference: float | None
    mean_difference: float | None
    tokens: int
    detail: str
    control_difference: float | None = None
    tolerance: float | None = None
    served_length: int | None = None
