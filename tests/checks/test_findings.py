"""Findings in every format: read back as the programs that take them do, with whatever text comes in."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.findings import Case, Place, Rule, Suite, annotate, command, junit_xml, line, markdown, sarif
from ctxforge.findings.github import relative

WILD = st.text(st.characters(exclude_categories=()), max_size=40)
RULES = (Rule("lengths", "Lengths agree", "Write them equal."), Rule("hashes", "Hashes agree", "Convert again."))


def suites(words: str = "a is 1.0; b is 2.0", file: str = "models/m 1/config.json") -> list[Suite]:
    places = (Place(file, 3, 5, "a is 1.0"), Place(file, 9, None, "b is 2.0"))
    return [
        Suite(
            "models/m 1",
            (
                Case("structure", "passed", "fine"),
                Case("lengths", "failed", words, "Write them equal.", places=places),
                Case("hashes", "failed", "gone", "Convert again."),
                Case("tokenizer", "skipped", "no file"),
            ),
            {"ctxforge": "1"},
        ),
        Suite("two", (Case("structure", "passed", "fine"),)),
    ]


class TestJunit:
    def test_counts_of_each_suite_and_of_all(self) -> None:
        root = ElementTree.fromstring(junit_xml(suites()))
        keys = ("tests", "failures", "errors", "skipped")
        assert [root.get(key) for key in keys] == ["5", "2", "0", "1"]
        assert [[one.get(key) for key in keys] for one in root] == [["4", "2", "0", "1"], ["1", "0", "0", "0"]]

    def test_a_failure_names_its_places(self) -> None:
        failure = ElementTree.fromstring(junit_xml(suites())).find(".//testcase[@name='lengths']/failure")
        assert failure is not None
        assert failure.get("message") == "a is 1.0; b is 2.0"
        assert failure.text == (
            "models/m 1/config.json:3: a is 1.0\nmodels/m 1/config.json:9: b is 2.0\nWrite them equal."
        )

    @settings(max_examples=40, deadline=None)
    @given(WILD, WILD)
    def test_any_text_survives(self, words: str, file: str) -> None:
        root = ElementTree.fromstring(junit_xml(suites(words, file)).encode())
        failure = root.find(".//failure")
        assert failure is not None
        assert failure.get("message") == line(words)


class TestSarif:
    def test_rules_results_and_places(self) -> None:
        document = json.loads(sarif(suites(), RULES, "https://example.org/rules"))
        assert document["version"] == "2.1.0"
        (run,) = document["runs"]
        driver = run["tool"]["driver"]
        assert [rule["id"] for rule in driver["rules"]] == ["lengths", "hashes"]
        assert driver["rules"][0]["help"]["text"] == "Write them equal."
        assert driver["rules"][0]["helpUri"] == "https://example.org/rules"
        first, second, third = run["results"]
        for result in run["results"]:
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            assert len(result["locations"]) == 1
        place = first["locations"][0]["physicalLocation"]
        assert place == {
            "artifactLocation": {"uri": "models/m%201/config.json", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 3, "startColumn": 5},
        }
        assert second["locations"][0]["physicalLocation"]["region"] == {"startLine": 9}
        assert third["message"]["text"] == "models/m 1: gone"
        # Without a file of its own a result stands at the checkpoint: code scanning wants a place.
        assert third["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "models/m%201"

    def test_a_fingerprint_outlives_a_moved_line_and_tells_faults_apart(self) -> None:
        def prints(number: int) -> list[str]:
            case = Case("lengths", "failed", "w", places=(Place("f", number, words="a"), Place("f", 2, words="b")))
            results = json.loads(sarif([Suite("m", (case,))], RULES))["runs"][0]["results"]
            return [result["partialFingerprints"]["ctxforge/v1"] for result in results]

        assert prints(3) == prints(7)
        assert len(set(prints(3))) == 2

    def test_a_url_stays_one(self) -> None:
        url = "https://host/org/name/blob/0123/config.json"
        case = Case("lengths", "failed", "w", places=(Place(url, 2),))
        (result,) = json.loads(sarif([Suite("m", (case,))], RULES))["runs"][0]["results"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": url}

    @settings(max_examples=40, deadline=None)
    @given(WILD, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
    def test_any_text_survives(self, words: str, file: str) -> None:
        document = json.loads(sarif(suites(words, file), RULES).encode())
        uri = document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert "://" in file or unquote(uri) == file


class TestAnnotations:
    def test_one_command_a_place(self) -> None:
        found = annotate(suites(), "ctxforge check")
        assert found == [
            "::error file=models/m 1/config.json,line=3,col=5,title=ctxforge check%3A lengths::a is 1.0",
            "::error file=models/m 1/config.json,line=9,title=ctxforge check%3A lengths::b is 2.0",
            "::error title=ctxforge check%3A hashes::models/m 1: gone. Convert again.",
        ]

    def test_nothing_failed_is_one_notice(self) -> None:
        assert annotate(suites()[1:], "t") == ["::notice title=t::1 checks of 1 checkpoints, none failed"]

    @settings(max_examples=40, deadline=None)
    @given(WILD, WILD)
    def test_any_text_is_one_command(self, file: str, message: str) -> None:
        """Read back as the runner does (ActionCommand.cs): properties end at the next `::`, then it unescapes."""
        text = command("error", "t", message, Place(file, 1))
        assert len(text.splitlines()) <= 1
        match = re.fullmatch(r"::error (?:file=([^,:]*),line=1,)?title=t::(.*)", text, re.DOTALL)
        assert match is not None
        if match[1] is not None:
            assert _unescape(match[1]) == line(file)
            assert _unescape(match[2]) == line(message)


def _unescape(text: str) -> str:
    for escaped, plain in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(escaped, plain)
    return text


def test_markdown_puts_failures_first_and_keeps_cells() -> None:
    text = markdown(suites(words="a | b\nc"), "check")
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert text.startswith("### check: fail\n")
    assert html.unescape(rows[2]) == "| lengths | **failed** | a | b c |"
    assert rows[2].count("|") == 4
    assert [row.split(" | ")[0] for row in rows[2:6]] == ["| lengths", "| hashes", "| structure", "| tokenizer"]


def test_paths_are_told_from_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert relative("config.json") == "models/config.json"
    assert relative(str(tmp_path / "models" / "m" / "x")) == "models/m/x"
    monkeypatch.delenv("GITHUB_WORKSPACE")
    assert relative("m/config.json") == "m/config.json"
    assert relative("/elsewhere/config.json") == "/elsewhere/config.json"
    assert relative("https://h/config.json") == "https://h/config.json"
