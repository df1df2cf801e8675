"""JUnit XML: one test case a gate, as CI systems show it."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

from ctxforge.verification.gates.types import GateResult, Judgement, Verdict
from ctxforge.verification.outputs.plain import line


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
    suite = ElementTree.Element("testsuite", name=line(name))
    if properties:
        holder = ElementTree.SubElement(suite, "properties")
        for key, value in sorted(properties.items()):
            ElementTree.SubElement(holder, "property", name=line(key), value=line(value))
    failures = skipped = 0
    for result in judgement.results:
        case = _case(suite, result.gate.name, name)
        if fails(result, strict=judgement.strict):
            failures += 1
            failure = ElementTree.SubElement(case, "failure", message=line(result.words), type=str(result.verdict))
            failure.text = line(result.gate.explanation)
        elif result.verdict == Verdict.INCONCLUSIVE:
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=line(f"inconclusive: {result.words}"))
        else:
            ElementTree.SubElement(case, "system-out").text = line(result.words)
    for gate, reason in judgement.left_out:
        skipped += 1
        ElementTree.SubElement(_case(suite, gate, name), "skipped", message=line(f"left out: {reason}"))
    tests = len(judgement.results) + len(judgement.left_out)
    counts = {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
    suite.attrib.update(counts)
    root = ElementTree.Element("testsuites", {"name": "ctxforge", **counts})
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def fails(result: GateResult, *, strict: bool) -> bool:
    """Whether the gate fails the verification."""
    return result.verdict == Verdict.FAIL or (strict and result.verdict == Verdict.INCONCLUSIVE)


def _case(suite: ElementTree.Element, gate: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=line(name), name=line(gate), time="0")
