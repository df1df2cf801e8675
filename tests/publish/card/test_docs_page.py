"""docs/model-card.md shows what the code renders."""

from __future__ import annotations

import re
from pathlib import Path

from ctxforge.publish.card.source_card import BEGIN, END
from ctxforge.version import __version__
from tests.publish.card.builders import part, verified

PAGE = (Path(__file__).parents[3] / "docs" / "model-card.md").read_text(encoding="utf-8")


def test_the_excerpts_are_of_a_card() -> None:
    found = re.findall(r"<!-- excerpt -->\n```markdown\n(.*?)\n```\n", PAGE, re.DOTALL)
    assert len(found) == 3
    made = re.sub(r"converted by ctxforge \S+", "converted by ctxforge VERSION", verified().text)
    for excerpt in found:
        assert re.sub(r"converted by ctxforge \S+", "converted by ctxforge VERSION", excerpt) in made
    assert f"converted by ctxforge {__version__} " in verified().text


def test_marks_and_sections_are_those_of_the_card() -> None:
    assert f"`{BEGIN}`" in PAGE
    assert f"`{END}`" in PAGE
    sections = [row.split(" | ")[0].strip("| ") for row in re.findall(r"^\| .*$", PAGE, re.MULTILINE)[1:]]
    named = [name for name in sections if name[:1].isupper()]
    assert named[:6] == re.findall(r"^## (.*)$", verified().text, re.MULTILINE)
    assert part(verified().text, named[0])
