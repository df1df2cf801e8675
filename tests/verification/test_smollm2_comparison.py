"""The ranking of docs/comparison-smollm2.md follows from its answers, and the page of the docs shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctxforge.verification.statistics import paired_bootstrap
from tests.verification.smollm2_comparison import rows

PAGE = (Path(__file__).parents[2] / "docs" / "comparison-smollm2.md").read_text(encoding="utf-8")


def test_scores_and_intervals_follow_from_the_answers() -> None:
    ranked = rows()
    losses = {row.name: [answer.nll for answer in row.measures.answers if answer.length == 16384] for row in ranked}
    assert {len(values) for values in losses.values()} == {80}
    best = losses[ranked[0].name]
    for row in ranked:
        score = paired_bootstrap(losses[row.name])[0]
        assert score.value == pytest.approx(row.score.value, abs=1e-4)
        assert (score.low, score.high) == (
            pytest.approx(row.score.low, abs=2e-4),
            pytest.approx(row.score.high, abs=2e-4),
        )
        if row.difference is not None:
            paired = [mine - other for mine, other in zip(losses[row.name], best, strict=True)]
            assert paired_bootstrap(paired)[0].value == pytest.approx(row.difference.value, abs=1e-4)
    assert [row.name for row in ranked] == sorted(losses, key=lambda name: sum(losses[name]))


def test_the_docs_show_it() -> None:
    shown = {
        cells[0]: cells[1:] for line in PAGE.splitlines() if (cells := re.findall(r"[^|]+", line.replace(" ", "")))
    }
    for row in rows():
        cells = shown[row.name]
        assert cells[0].startswith(f"{row.score.value:.3f}(")
        assert cells[6] == f"{row.measures.lengths[-1].ppl:.2f}"
        exact = sum(answer.exact for answer in row.measures.answers if answer.length == 16384)
        assert cells[2] == str(exact)
