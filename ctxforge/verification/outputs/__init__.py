"""A verification's verdicts as other programs read them: JUnit XML, GitHub's step summary and annotations."""

from __future__ import annotations

from ctxforge.verification.outputs.github import annotate, append_summary, summary_markdown
from ctxforge.verification.outputs.junit import junit_xml

__all__ = ["annotate", "append_summary", "junit_xml", "summary_markdown"]
