"""The page of several methods: their ranks, what is told apart and what is not, and who has which colour."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest

from ctxforge.errors import UsageError
from ctxforge.verification.html import comparison_figures
from ctxforge.verification.html.comparison import BEST, NO_SCORE, TOO_FEW, UNTOLD, WORSE, rank, standing
from ctxforge.verification.statistics import Interval, too_few
from tests.verification.html_samples import comparison_rows
from tests.verification.test_html import Page, compared


def test_comparison_ranks() -> None:
    rows = comparison_rows()
    assert [row.name for row in rank(rows, higher_is_better=False)] == ["yarn", "pi", "none"]
    assert [row.name for row in rank(rows, higher_is_better=True)] == ["none", "pi", "yarn"]
    lost = dataclasses.replace(rows[2], score=too_few(math.nan, 0))
    assert [row.name for row in rank([lost, *rows[:2]], higher_is_better=False)] == ["pi", "none", "yarn"]
    text = Page(compared()).text
    assert "yarn is the best of 3." in text
    assert "1. yarn best" in text
    assert "3. none worse than the best" in text
    with pytest.raises(UsageError):
        compared([])


@pytest.mark.parametrize(
    ("bounds", "higher", "words"),
    [
        ((0.1, 0.3), False, WORSE),
        ((-0.3, -0.1), True, WORSE),
        ((-0.1, 0.3), False, UNTOLD),
        ((-0.1, 0.3), True, UNTOLD),
        ((None, None), True, TOO_FEW),
    ],
)
def test_standing(bounds: tuple[float | None, float | None], higher: bool, words: str) -> None:
    row = dataclasses.replace(comparison_rows()[0], difference=Interval(0.2, *bounds, 8, "made up"))
    assert standing(row, first=False, higher_is_better=higher) == words
    assert standing(row, first=True, higher_is_better=higher) == BEST
    lost = dataclasses.replace(row, score=too_few(math.nan, 0))
    assert standing(lost, first=True, higher_is_better=higher) == NO_SCORE


def test_close_methods_are_named_in_the_headline() -> None:
    rows = comparison_rows()
    near = dataclasses.replace(rows[1], difference=Interval(0.01, -0.1, 0.1, 8, "made up"))
    assert "not told apart from it: pi" in Page(compared([rows[0], near, rows[2]])).text


def test_a_method_keeps_its_colour_from_figure_to_figure() -> None:
    ranked = rank(comparison_rows(), higher_is_better=False)
    drawn = comparison_figures(ranked, trained_length=512, target_length=2048)
    entry = r'<path d="M[^"]*" class="curve s(\d)"[^>]*/>\s*<[^>]*/>\s*<text[^>]*>(\w+)</text>'
    legends = {name: {label: slot for slot, label in re.findall(entry, svg)} for name, svg in drawn.items()}
    assert legends["perplexity"] == {"yarn": "0", "pi": "1"}
    assert legends["retrieval"] == legends["perplexity"]
    assert legends["rotation"] == {"yarn": "0", "pi": "1"}
    for name in ("perplexity", "retrieval"):
        # The unmodified model has the colour of the text and hollow points.
        assert re.search(r'class="curve base"/>\s*<circle[^>]* class="hollow"/>\s*<text[^>]*>none<', drawn[name])


def test_many_lines_are_told_apart_without_colour() -> None:
    names = tuple(f"m{i}" for i in range(16))
    svg = comparison_figures(comparison_rows(names), trained_length=512, target_length=2048)["perplexity"]
    entry = r'<path d="M[^"]*" class="curve s(\d)"([^>]*)/>\s*<(\w+) [^>]*/>\s*<text[^>]*>(m\d+)</text>'
    found = re.findall(entry, svg)
    # The first is the unmodified model, in the colour of the text.
    assert [label for *_, label in found] == list(names[1:])
    assert len({(colour, dashes, shape) for colour, dashes, shape, _ in found}) == 15
    for first, second in itertools.pairwise(found):
        assert first[1] != second[1], "neighbours have the same dashes"
