"""JUnit, step summary and annotations: read back by parsers of other people, with whatever text comes in."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge.errors import ResourceError
from ctxforge.verification.gates import GATES, Gate, GateResult, Judgement, Verdict, effective_length, judge, mean
from ctxforge.verification.outputs import annotate, append_summary, junit_xml, summary_markdown
from ctxforge.verification.outputs.github import command, escape
from ctxforge.verification.outputs.plain import line
from ctxforge.verification.statistics import Interval

BY_NAME = {gate.name: gate for gate in GATES}
# Any text, control characters and lone surrogates among it: names of files and models come from outside.
WILD = st.text(st.characters(exclude_categories=()), max_size=40)


def judgement(*, strict: bool = False, words: str = "0.2 nats | <b>worse</b> & 100 % more") -> Judgement:
    interval = Interval(0.2, 0.19, 0.21, 16, "paired bootstrap")
    return Judgement(
        (
            GateResult(BY_NAME["config"], Verdict.PASS, Interval(0, 0, 0, 1, "exact"), "exact", "0 failed checks"),
            GateResult(BY_NAME["short_nll"], Verdict.FAIL, interval, "interval", words),
            GateResult(
                BY_NAME["use"], Verdict.INCONCLUSIVE, Interval(0.1, None, None, 4, "too few"), "point", "too few"
            ),
            GateResult(BY_NAME["retrieval"], Verdict.INCONCLUSIVE, None, "not measured", "no value: no source"),
        ),
        (("long_nll", "no text was given"),),
        strict,
    )


class TestJunit:
    def test_counts_and_elements(self) -> None:
        root = ElementTree.fromstring(junit_xml(judgement(), properties={"torch": "2.13", "a": "b"}))
        suite = root.find("testsuite")
        assert suite is not None
        for element in (root, suite):
            counts = {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")}
            assert counts == {"tests": "5", "failures": "1", "errors": "0", "skipped": "3"}
        cases = {case.get("name"): case for case in suite.iter("testcase")}
        assert list(cases) == ["config", "short_nll", "use", "retrieval", "long_nll"]
        assert len(suite.findall("testcase/failure")) == 1
        assert len(suite.findall("testcase/skipped")) == 3
        failure = cases["short_nll"].find("failure")
        assert failure is not None
        assert failure.get("message") == "0.2 nats | <b>worse</b> & 100 % more"
        assert failure.text == BY_NAME["short_nll"].explanation
        assert [p.get("name") for p in suite.iter("property")] == ["a", "torch"]

    def test_inconclusive_is_skipped_and_fails_when_strict(self) -> None:
        skipped = ElementTree.fromstring(junit_xml(judgement())).find(".//testcase[@name='use']/skipped")
        assert skipped is not None
        assert skipped.get("message") == "inconclusive: too few"
        strict = ElementTree.fromstring(junit_xml(judgement(strict=True)))
        assert (strict.get("failures"), strict.get("skipped")) == ("3", "1")
        failure = strict.find(".//testcase[@name='use']/failure")
        assert failure is not None
        assert failure.get("type") == "inconclusive"

    def test_document_and_exit_code_agree(self) -> None:
        for strict in (False, True):
            for kept in range(1, 5):
                found = Judgement(judgement().results[:kept], (), strict)
                failures = int(ElementTree.fromstring(junit_xml(found)).get("failures", ""))
                assert (failures > 0) == (found.exit_code == 1)

    def test_no_gates_is_a_document_still(self) -> None:
        assert ElementTree.fromstring(junit_xml(Judgement(()))).get("tests") == "0"

    def test_deterministic(self) -> None:
        assert junit_xml(judgement(), name="m") == junit_xml(judgement(), name="m")

    @given(WILD, WILD, WILD)
    def test_any_text_survives(self, name: str, words: str, value: str) -> None:
        document = junit_xml(judgement(words=words), name=name, properties={"key": value})
        root = ElementTree.fromstring(document.encode())
        suite, failure = root.find("testsuite"), root.find(".//failure")
        assert suite is not None
        assert failure is not None
        assert (suite.get("name"), failure.get("message")) == (line(name), line(words))
        assert next(root.iter("property")).get("value") == line(value)


class TestSummary:
    def test_table_of_gates(self) -> None:
        text = summary_markdown(judgement(), title="llama-64k")
        assert text.startswith("### llama-64k: fail\n")
        rows = [row for row in text.splitlines() if row.startswith("|")]
        assert len(rows) == 2 + 4
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
        assert html.unescape(rows[3]) == (
            "| short_nll | **fail** | 0.2 nats a token | 0.19 to 0.21 | at most 0.05 | 16 | interval |"
        )
        assert html.unescape(rows[4]).startswith("| use | **inconclusive** | 0.1 nats a token | too few |")
        assert html.unescape(text.splitlines()[-1]) == "Left out: long_nll (no text was given)"

    def test_effective_length(self) -> None:
        gate = Gate("loss", "loss", "at most", 1.0, "interval", "nats", "e.")
        found = effective_length([gate], {4096: {"loss": mean([0.5] * 9, unit="document")}})
        text = html.unescape(summary_markdown(judge([gate], {}), effective=found))
        assert "Effective length: 4k, the longest length measured (95 % 4k to 4k)\n" in text

    def test_a_value_that_is_not_a_number(self) -> None:
        result = GateResult(BY_NAME["use"], Verdict.FAIL, Interval(math.nan, None, None, 9, ""), "point", "")
        assert "| not a number | too few |" in summary_markdown(Judgement((result,)))

    def test_appended_to_the_file_that_github_names(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.md"
        path.write_text("before\n")
        environment = {"GITHUB_STEP_SUMMARY": str(path)}
        assert append_summary("one\n", environment) == path
        assert append_summary("two\n", environment) == path
        assert path.read_text() == "before\n\none\n\ntwo\n"

    def test_nothing_is_written_elsewhere(self) -> None:
        assert append_summary("x", {}) is None
        assert append_summary("x", {"GITHUB_STEP_SUMMARY": ""}) is None

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ResourceError, match="can't be written"):
            append_summary("x", {"GITHUB_STEP_SUMMARY": str(tmp_path)})

    def test_a_full_summary(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.md"
        path.write_bytes(b" " * 1024 * 1024)
        with pytest.raises(ResourceError, match="full"):
            append_summary("x", {"GITHUB_STEP_SUMMARY": str(path)})

    @given(WILD)
    def test_escape_keeps_the_text_and_leaves_no_markup(self, text: str) -> None:
        escaped = escape(text)
        assert html.unescape(escaped) == line(text)
        without = re.sub(r"&#\d+;", "", escaped)
        assert not set(without) & set("\\`*_{}[]<>#|~&\n\r")
        escaped.encode()

    @pytest.mark.parametrize("text", ["a|b", "<img src=x>", "[x](y)", "`code` *b* _i_ ~~s~~", "&amp;", "a\\|b", "# h"])
    def test_escape_by_example(self, text: str) -> None:
        assert html.unescape(escape(text)) == text


class TestAnnotations:
    def test_levels(self) -> None:
        levels = [found.split(" ")[0] for found in annotate(judgement())]
        assert levels == ["::error", "::warning", "::warning"]
        assert [found.split(" ")[0] for found in annotate(judgement(strict=True))] == ["::error"] * 3

    def test_a_pass_is_one_notice(self) -> None:
        found = Judgement(judgement().results[:1])
        assert annotate(found) == ["::notice title=ctxforge verify::pass: 1 of 1 gates"]

    def test_escapes_of_workflow_commands(self) -> None:
        assert command("error", "a: b, 5 %", "x: 5 %, y") == "::error title=a%3A b%2C 5 %25::x: 5 %25, y"

    @given(WILD, WILD)
    def test_any_text_is_one_command(self, title: str, message: str) -> None:
        """Read back as the runner does (ActionCommand.cs): properties end at the next `::`, then it unescapes."""
        text = command("error", title, message)
        assert len(text.splitlines()) <= 1
        assert "\n" not in text
        assert "\r" not in text
        match = re.fullmatch(r"::error title=(.*?)::(.*)", text, re.DOTALL)
        assert match is not None
        assert (_unescape(match[1]), _unescape(match[2])) == (line(title), line(message))


def _unescape(text: str) -> str:
    for escaped, plain in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(escaped, plain)
    return text
