"""Findings as other programs read them: JUnit XML, SARIF, GitHub's annotations and step summary, Markdown.

What found them (`ctxforge check`, the gates of `ctxforge verify`) makes `Suite`s of `Case`s; nothing here knows of
either.
"""

from ctxforge.findings.github import annotate, append_summary, command
from ctxforge.findings.junit import junit_xml
from ctxforge.findings.markdown import escape, markdown
from ctxforge.findings.plain import line
from ctxforge.findings.sarif import sarif
from ctxforge.findings.types import Case, Outcome, Place, Rule, Suite

__all__ = [
    "Case",
    "Outcome",
    "Place",
    "Rule",
    "Suite",
    "annotate",
    "append_summary",
    "command",
    "escape",
    "junit_xml",
    "line",
    "markdown",
    "sarif",
]
