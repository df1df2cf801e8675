"""Gates, their verdicts, and the exit code of a verification."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ctxforge.verification.statistics import Interval

Direction = Literal["at most", "at least"]
Basis = Literal["interval", "exact"]
Decided = Literal["interval", "point", "exact", "not measured"]


class Verdict(StrEnum):
    """What a gate says."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class VerifyExit(IntEnum):
    """Exit codes of `ctxforge verify` once it has measured; errors before that keep `ctxforge.errors.ExitCode`.

    3 is the code of "no answer can be given", for both: there a model is refused, here the evidence is too thin. A
    report exists in the second case only, and `--json` names the status.
    """

    PASSED = 0
    FAILED = 1
    INCONCLUSIVE = 3


@dataclass(frozen=True)
class Gate:
    """A threshold for one measured quantity.

    Attributes:
        name: as in reports and gate files.
        measure: name of the measurement.
        direction: "at most" when small is good, "at least" when large is.
        threshold: the last good value.
        basis: "interval": decided by the 95 % interval, or by `gross` alone below eight units; "exact": the value
            itself is compared, for numbers without sampling error.
        gross: a value beyond it fails on any number of units; None for no such limit.
        gross_units: fewest units that `gross` may decide on.
        quantity: what the number is, in words or units: "nats a token".
        explanation: what is held to the threshold and why, one line.
        required: whether the gate is inconclusive when its quantity was not measured or is too weak to decide it; else
            it is left out.
    """

    name: str
    measure: str
    direction: Direction
    threshold: float
    basis: Basis
    quantity: str
    explanation: str
    gross: float | None = None
    gross_units: int = 1
    required: bool = False


@dataclass(frozen=True)
class GateResult:
    """A gate with its verdict.

    Attributes:
        gate: the gate.
        verdict: pass, fail or inconclusive.
        interval: the value and its bounds; None when it was not measured.
        decided_by: "interval", "point" (too few units), "exact" or "not measured".
        words: value, interval, threshold and the reason, one line.
    """

    gate: Gate
    verdict: Verdict
    interval: Interval | None
    decided_by: Decided
    words: str


@dataclass(frozen=True)
class Judgement:
    """All gates of a verification.

    Attributes:
        results: in the order of the gates.
        left_out: name and reason of gates that were not required and could not be judged.
        strict: whether an inconclusive gate counts as a failed one.
    """

    results: tuple[GateResult, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    strict: bool = False

    @property
    def verdict(self) -> Verdict:
        """Fail if any gate failed; else inconclusive if any is, or if there is none at all; else pass."""
        found = {result.verdict for result in self.results}
        if Verdict.FAIL in found:
            return Verdict.FAIL
        return Verdict.INCONCLUSIVE if Verdict.INCONCLUSIVE in found or not found else Verdict.PASS

    @property
    def exit_code(self) -> VerifyExit:
        """0 when all passed, 1 when any failed, 3 when any is inconclusive (1 when strict)."""
        if self.verdict == Verdict.INCONCLUSIVE:
            return VerifyExit.FAILED if self.strict else VerifyExit.INCONCLUSIVE
        return VerifyExit.FAILED if self.verdict == Verdict.FAIL else VerifyExit.PASSED

    @property
    def headline(self) -> str:
        """One line: the verdict, and the gates that decided it by name."""
        if not self.results:
            return "inconclusive: no gate was judged"
        verdict = self.verdict
        named = [result.gate.name for result in self.results if result.verdict == verdict]
        if verdict == Verdict.PASS:
            return f"pass: {len(named)} of {len(self.results)} gates"
        counted = "counted as a failure, " if self.strict and verdict == Verdict.INCONCLUSIVE else ""
        return f"{verdict}: {counted}{len(named)} of {len(self.results)} gates ({', '.join(named)})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data, numbers that are not finite included: the caller makes them None."""
        return {
            "verdict": str(self.verdict),
            "exit_code": int(self.exit_code),
            "strict": self.strict,
            "headline": self.headline,
            "gates": [
                {
                    **asdict(result.gate),
                    "verdict": str(result.verdict),
                    "decided_by": result.decided_by,
                    "words": result.words,
                    "interval": None if result.interval is None else asdict(result.interval),
                }
                for result in self.results
            ],
            "left_out": [{"gate": name, "reason": reason} for name, reason in self.left_out],
        }
