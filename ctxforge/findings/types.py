"""What every output is made of: suites of cases, each with an outcome and the places at fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Place:
    """Where something is wrong.

    Args:
        file: a path as the user would type it, or a URL; "" where no file can be named.
        line: from 1; None where the whole file is meant.
        column: from 1, in characters; None where the whole line is meant.
        words: what is wrong here; "" for what the case says.
    """

    file: str
    line: int | None = None
    column: int | None = None
    words: str = ""


@dataclass(frozen=True)
class Case:
    """One thing that was looked at.

    Args:
        name: of the check or gate; stable, since dashboards follow it over time.
        outcome: passed, failed or skipped.
        words: what was found, one line.
        explanation: what that means and what to do; "" where there is nothing to say.
        kind: what a failure is called (JUnit's type).
        places: where it is wrong; empty where that can't be said.
    """

    name: str
    outcome: Outcome
    words: str
    explanation: str = ""
    kind: str = "fail"
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Suite:
    """All cases of one checkpoint, in order; `properties` are shown with them, such as versions."""

    name: str
    cases: tuple[Case, ...]
    properties: Mapping[str, str] = field(default_factory=dict)

    def count(self, outcome: Outcome) -> int:
        """How many cases have this outcome."""
        return sum(case.outcome == outcome for case in self.cases)


@dataclass(frozen=True)
class Rule:
    """What a check demands, for people who see a failure of it.

    Args:
        name: of the case.
        title: a few words.
        help: why it matters and what to do, in whole sentences.
    """

    name: str
    title: str
    help: str
