"""GitHub Actions: annotations as workflow commands, and the step summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ctxforge.errors import ResourceError
from ctxforge.findings.plain import line
from ctxforge.findings.types import Case, Place, Suite

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_LARGEST_SUMMARY = 1024 * 1024


def annotate(suites: Sequence[Suite], title: str) -> list[str]:
    """Workflow commands, one line each: an error for every place of every failed case, else one notice.

    Args:
        suites: the findings.
        title: what found them, such as "ctxforge check"; the case's name follows it.
    """
    found = [
        command("error", f"{title}: {case.name}", place.words or _words(suite, case), place)
        for suite in suites
        for case in suite.cases
        if case.outcome == "failed"
        for place in case.places or (Place(""),)
    ]
    cases = sum(len(suite.cases) for suite in suites)
    return found or [command("notice", title, f"{cases} checks of {len(suites)} checkpoints, none failed")]


def command(level: str, title: str, message: str, place: Place | None = None) -> str:
    """`::level file=...,line=...,title=...::message` with GitHub's escapes.

    actions/toolkit packages/core/src/command.ts. A URL is no file of the workspace and goes into the message.
    """
    properties = []
    if place is not None and "://" in place.file:
        message = f"{place.file}: {message}"
    elif place is not None and place.file:
        properties.append(f"file={_property(line(place.file))}")
        properties += [f"line={place.line}"] if place.line is not None else []
        properties += [f"col={place.column}"] if place.line is not None and place.column is not None else []
    properties.append(f"title={_property(line(title))}")
    return f"::{level} {','.join(properties)}::{_data(line(message))}"


def append_summary(markdown: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """Append to the file that GitHub names in $GITHUB_STEP_SUMMARY; returns it, or None outside of a workflow.

    Raises:
        ResourceError: the file can't be written, or would exceed what GitHub takes of a step (1 MiB).
    """
    named = (os.environ if environment is None else environment).get(SUMMARY_VARIABLE)
    if not named:
        return None
    path, content = Path(named), "\n" + markdown
    try:
        present = path.stat().st_size if path.exists() else 0
        if present + len(content.encode()) > _LARGEST_SUMMARY:
            raise ResourceError(
                f"the step summary {path} is full", "GitHub takes 1 MiB a step; run this in a step alone"
            )
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(content)
    except OSError as error:
        raise ResourceError(
            f"${SUMMARY_VARIABLE} {path} can't be written: {error.strerror}", "unset it, or give a path that can be"
        ) from None
    return path


def relative(path: str, roots: Iterable[str | None] | None = None) -> str:
    """`path` relative to the workspace ($GITHUB_WORKSPACE, else the working folder) where it lies inside.

    Annotations and code scanning find a file of the repository by that path alone. A URL stays.
    """
    if "://" in path or not path:
        return path
    candidates = (os.environ.get("GITHUB_WORKSPACE"), os.getcwd()) if roots is None else roots  # noqa: PTH109
    real = Path(os.path.realpath(path))
    for root in candidates:
        if root and real.is_relative_to(os.path.realpath(root)):
            return real.relative_to(os.path.realpath(root)).as_posix()
    return Path(path).as_posix()


def _words(suite: Suite, case: Case) -> str:
    return f"{suite.name}: {case.words}. {case.explanation}" if case.explanation else f"{suite.name}: {case.words}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
