"""SARIF 2.1.0 (OASIS), as code-scanning services read it: rules with their help, one result a place at fault."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ctxforge.findings.plain import line
from ctxforge.findings.types import Case, Place, Rule, Suite
from ctxforge.version import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(suites: Sequence[Suite], rules: Sequence[Rule], help_uri: str | None = None) -> str:
    """One run with all suites.

    Failed cases are results of level `error`; passed and skipped ones are none, as services would show them as alerts.
    A result's fingerprint is made of the rule, the file and the words, so that an alert survives a change of line
    numbers. Files that are not URLs must be relative to the repository's root.

    Args:
        suites: the findings.
        rules: every rule that was applied, whether or not it failed.
        help_uri: where rules are documented.
    """
    names = [rule.name for rule in rules]
    results = [
        _result(suite, case, place, names)
        for suite in suites
        for case in suite.cases
        if case.outcome == "failed"
        for place in case.places or (Place(suite.name),)
    ]
    driver: dict[str, Any] = {
        "name": "ctxforge",
        "version": __version__,
        "rules": [_rule(rule, help_uri) for rule in rules],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": results,
        "properties": {"checkpoints": [line(suite.name) for suite in suites]},
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _rule(rule: Rule, help_uri: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": rule.name,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.help},
        "help": {"text": rule.help},
        "defaultConfiguration": {"level": "error"},
    }
    if help_uri is not None:
        found["helpUri"] = help_uri
    return found


def _result(suite: Suite, case: Case, place: Place, names: list[str]) -> dict[str, Any]:
    words = line(place.words or case.words)
    digest = hashlib.sha256("\0".join((case.name, line(suite.name), place.file, words)).encode()).hexdigest()
    # Code scanning refuses a whole document for one result without a location.
    located = place if place.file else Place(suite.name)
    result: dict[str, Any] = {
        "ruleId": case.name,
        "level": "error",
        "message": {"text": f"{line(suite.name)}: {words}"},
        "partialFingerprints": {"ctxforge/v1": digest},
    }
    if case.name in names:
        result["ruleIndex"] = names.index(case.name)
    result["locations"] = [{"physicalLocation": _location(located)}]
    return result


def _location(place: Place) -> dict[str, Any]:
    remote = "://" in place.file
    artifact = {"uri": line(place.file) if remote else quote(place.file, safe="/", errors="replace")}
    if not remote and not place.file.startswith("/"):
        artifact["uriBaseId"] = "%SRCROOT%"
    found: dict[str, Any] = {"artifactLocation": artifact}
    if place.line is not None:
        found["region"] = {"startLine": place.line}
        if place.column is not None:
            found["region"]["startColumn"] = place.column
    return found
