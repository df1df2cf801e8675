"""Mutated configs and headers: whatever check finds fits every output, and diff answers or refuses."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import HealthCheck, given, settings

from ctxforge import findings
from ctxforge.differences import differences
from ctxforge.errors import InternalError
from ctxforge.static_checks import check, unreadable
from ctxforge.static_checks.rules import RULES
from ctxforge.static_checks.suite import suite
from tests.llama_folder import CONFIG, safetensors_bytes, write_folder
from tests.test_mutations import configs, refused, weights

SOME = settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
ROOT = Path(tempfile.mkdtemp(prefix="ctxforge-mutated-"))
SOUND, FOLDER = write_folder(ROOT / "sound"), write_folder(ROOT / "mutated")


def attempt() -> None:
    refusal = refused(lambda: check(FOLDER))
    report = check(FOLDER) if refusal is None else unreadable(FOLDER, refusal)
    assert not isinstance(refusal, InternalError)
    assert refusal is None or not report.passed
    suites = [suite(report)]
    failed = sum(item.verdict == "fail" for item in report.checks)
    assert ElementTree.fromstring(findings.junit_xml(suites).encode()).get("failures") == str(failed)
    results = json.loads(findings.sarif(suites, RULES).encode())["runs"][0]["results"]
    assert len(results) == sum(len(item.faults) for item in report.checks if item.verdict == "fail")
    assert len(findings.annotate(suites, "check")) == max(len(results), 1)
    findings.markdown(suites, "check").encode()
    assert not isinstance(refused(lambda: differences(SOUND, FOLDER)), InternalError)


@SOME
@given(configs())
def test_mutated_configs(text: str) -> None:
    (FOLDER / "model.safetensors").write_bytes(safetensors_bytes())
    (FOLDER / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    attempt()


@SOME
@given(weights())
def test_mutated_headers(data: bytes) -> None:
    (FOLDER / "config.json").write_text(json.dumps(CONFIG))
    (FOLDER / "model.safetensors").write_bytes(data)
    attempt()
