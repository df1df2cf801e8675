"""JUnit XML: one test case a gate, as CI systems show it."""

from __future__ import annotations

from collections.abc import Mapping

from ctxforge.findings import Case, Suite
from ctxforge.findings import junit_xml as document
from ctxforge.verification.gates.types import GateResult, Judgement, Verdict


def junit_xml(
    judgement: Judgement, *, name: str = "ctxforge verify", properties: Mapping[str, str] | None = None
) -> str:
    """The gates as a JUnit document.

    A failed gate is a failure. An inconclusive one is skipped, with what it lacks as the message; under `strict` it is
    a failure too, so that the document and the exit code agree. A gate that was left out is skipped. The document
    depends on the judgement alone: it holds no time and no host.

    Args:
        judgement: the verdicts.
        name: of the test suite, such as the checkpoint's name.
        properties: shown with the suite, such as versions.
    """
    cases = [_case(result, strict=judgement.strict) for result in judgement.results]
    cases += [Case(gate, "skipped", f"left out: {reason}") for gate, reason in judgement.left_out]
    return document([Suite(name, tuple(cases), properties or {})])


def fails(result: GateResult, *, strict: bool) -> bool:
    """Whether the gate fails the verification."""
    return result.verdict == Verdict.FAIL or (strict and result.verdict == Verdict.INCONCLUSIVE)


def _case(result: GateResult, *, strict: bool) -> Case:
    gate = result.gate
    if fails(result, strict=strict):
        return Case(gate.name, "failed", result.words, gate.explanation, kind=str(result.verdict))
    if result.verdict == Verdict.INCONCLUSIVE:
        return Case(gate.name, "skipped", f"inconclusive: {result.words}")
    return Case(gate.name, "passed", result.words)
