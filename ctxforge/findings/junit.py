"""JUnit XML: one test suite a checkpoint, one test case a check or gate, as CI systems show them."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from ctxforge.findings.plain import line
from ctxforge.findings.types import Case, Place, Suite


def junit_xml(suites: Sequence[Suite]) -> str:
    """The suites as a JUnit document.

    Deterministic: it holds no time and no host. A failure's text names its places, one a line.
    """
    elements = [_suite(suite) for suite in suites]
    total = {name: str(sum(int(one.attrib[name]) for one in elements)) for name in _counts(Suite("", ()))}
    root = ElementTree.Element("testsuites", {"name": "ctxforge", **total})
    root.extend(elements)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counts(suite: Suite) -> dict[str, str]:
    return {
        "tests": str(len(suite.cases)),
        "failures": str(suite.count("failed")),
        "errors": "0",
        "skipped": str(suite.count("skipped")),
    }


def _suite(suite: Suite) -> ElementTree.Element:
    found = ElementTree.Element("testsuite", {"name": line(suite.name), **_counts(suite)})
    if suite.properties:
        holder = ElementTree.SubElement(found, "properties")
        for key, value in sorted(suite.properties.items()):
            ElementTree.SubElement(holder, "property", name=line(key), value=line(value))
    for case in suite.cases:
        element = ElementTree.SubElement(found, "testcase", classname=line(suite.name), name=line(case.name), time="0")
        _outcome(element, case)
    return found


def _outcome(element: ElementTree.Element, case: Case) -> None:
    if case.outcome == "failed":
        failure = ElementTree.SubElement(element, "failure", message=line(case.words), type=line(case.kind))
        failure.text = "\n".join([*(_place(place) for place in case.places if place.file), line(case.explanation)])
    elif case.outcome == "skipped":
        ElementTree.SubElement(element, "skipped", message=line(case.words))
    else:
        ElementTree.SubElement(element, "system-out").text = line(case.words)


def _place(place: Place) -> str:
    where = place.file if place.line is None else f"{place.file}:{place.line}"
    return line(f"{where}: {place.words}" if place.words else where)
