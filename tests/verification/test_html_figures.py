"""The figures of a comparison: intervals where they belong, labels that keep apart."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re

import pytest

from ctxforge.verification.end_labels import end_width, spread
from ctxforge.verification.html import comparison_figures
from ctxforge.verification.html.panels import fitting
from ctxforge.verification.statistics import Interval, too_few
from tests.verification.html_samples import comparison_rows

NAMES = ("none", "pi", "ntk", "ntk-by-parts", "yarn", "yarn+resonance", "llama3", "mrrope-pro")


def drawn(names: tuple[str, ...] = NAMES, width: float = 780.0) -> dict[str, str]:
    return comparison_figures(comparison_rows(names)[::-1], trained_length=512, target_length=2048, width=width)


def polygons(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polygon points="([^"]+)"', svg)
    return [[tuple(map(float, point.split(","))) for point in path.split()] for path in found]  # type: ignore[misc]


def test_retrieval_bands_are_wilsons() -> None:
    svg = drawn(("none", "yarn"))["retrieval"]
    # 0 and 100 % by their grid lines.
    grid = sorted({float(y) for y in re.findall(r'<line x1="[\d.]+" y1="([\d.]+)"[^>]*class="grid"', svg)})
    assert len(grid) == 6
    top, floor = grid[0], grid[-1]
    yarn = polygons(svg)[0]
    ends = sorted(y for x, y in yarn if x == max(x for x, _ in yarn))
    # Wilson's interval of 38 of 40 is 83.50 to 98.62 %.
    high, low = (100 * (floor - y) / (floor - top) for y in ends)
    assert low == pytest.approx(83.50, abs=0.05)
    assert high == pytest.approx(98.62, abs=0.05)


def test_bands_of_many_methods_get_panels() -> None:
    found = drawn()
    assert list(found) == [
        "ranking",
        "perplexity",
        "perplexity-by-method",
        "retrieval",
        "retrieval-by-method",
        "rotation",
    ]
    for name in ("perplexity", "retrieval"):
        # In one chart the best and the unmodified model, in the panels everybody.
        assert len(polygons(found[name])) == 2
        assert len(polygons(found[f"{name}-by-method"])) == len(NAMES)
        assert found[name].count(' thin"') == len(NAMES) - 2
        labels = re.findall(r'class="small strong">([^<]+)<', found[f"{name}-by-method"])
        assert labels == list(NAMES[::-1])
    few = drawn(NAMES[:3])
    assert not [name for name in few if name.endswith("-by-method")]
    assert len(polygons(few["perplexity"])) == 3


def test_ranking_draws_every_interval_where_it_is() -> None:
    rows = comparison_rows(("none", "pi", "yarn"))[::-1]
    svg = comparison_figures(rows, trained_length=512, target_length=2048, score="nats")["ranking"]
    ticks = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle" class="small soft">([\d.]+)<', svg)
    (x0, v0), (x1, v1) = ((float(x), float(v)) for x, v in (ticks[0], ticks[-1]))
    bars = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="curve', svg)
    assert len(bars) == 3
    for row, (low, high) in zip(rows, bars, strict=True):
        assert row.score.bounds is not None
        shown = [v0 + (float(x) - x0) * (v1 - v0) / (x1 - x0) for x in (low, high)]
        assert shown == pytest.approx(row.score.bounds, abs=0.01)
    lost = dataclasses.replace(rows[2], score=too_few(math.nan, 0))
    few = dataclasses.replace(rows[1], score=Interval(-0.5, None, None, 3, "too few"))
    svg = comparison_figures([rows[0], few, lost], trained_length=512, target_length=2048)["ranking"]
    assert ">-0.500 (too few)<" in svg
    assert ">–<" in svg
    assert "nan" not in svg.partition("</desc>")[2]


def test_ranking_over_a_wide_range_is_logarithmic() -> None:
    base = comparison_rows(("none", "pi", "yarn"))[::-1]
    scores = (
        Interval(0.05, 0.007, 0.12, 40, "b"),
        Interval(0.13, 0.02, 0.3, 40, "b"),
        Interval(5.2, 5.0, 5.5, 40, "b"),
    )
    rows = [dataclasses.replace(row, score=score) for row, score in zip(base, scores, strict=True)]
    svg = comparison_figures(rows, trained_length=512, target_length=2048, score="nats")["ranking"]
    assert "nats (log scale)" in svg
    assert "0.050 (0.007 to 0.120)" in svg
    ticks = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle" class="small soft">([\d.]+)<', svg)
    bars = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="curve', svg)
    (x0, v0), (x1, v1) = ((float(x), math.log(float(v))) for x, v in (ticks[0], ticks[-1]))
    shown = [math.exp(v0 + (float(x) - x0) * (v1 - v0) / (x1 - x0)) for x in bars[1]]
    assert shown == pytest.approx((0.02, 0.3), rel=0.01)


def test_one_method_alone_has_no_ranking() -> None:
    assert "ranking" not in drawn(("none",))


def test_names_stand_at_the_ends_of_lines_where_there_is_room() -> None:
    assert drawn()["perplexity"].count('class="leader"/>') == len(NAMES)
    assert drawn(width=360.0)["perplexity"].count('class="leader"/>') == 0
    assert end_width(["a" * 40]) is None
    assert end_width([str(i) for i in range(15)]) is None
    assert end_width(["yarn"]) == pytest.approx(16 + 24 + 7 + 4 * 7.8)


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_apart_and_move_as_little_as_they_can(seed: int) -> None:
    generator = random.Random(seed)
    wanted = [generator.uniform(0, 300) for _ in range(generator.randint(1, 12))]
    placed = spread(wanted, 18.0, 20.0, 280.0)
    order = sorted(placed)
    assert all(b - a >= 18 - 1e-9 for a, b in itertools.pairwise(order))
    assert order[0] >= 20 - 1e-9
    assert order[-1] <= 280 + 1e-9

    def cost(places: list[float]) -> float:
        return sum((p - w) ** 2 for p, w in zip(places, wanted, strict=True))

    # Nobody who may move gets nearer: the problem is convex, so that no step inside its bounds may help.
    for _ in range(300):
        moved = [p + generator.gauss(0, 2.0) for p in placed]
        ranks = sorted(moved)
        gaps = all(b - a >= 18 for a, b in itertools.pairwise(ranks))
        if gaps and ranks[0] >= 20 and ranks[-1] <= 280:
            assert cost(moved) >= cost(placed) - 1e-9


def test_ticks_of_a_panel_stay_inside_and_apart() -> None:
    kept = fitting([(0.0, "0"), (6.0, "4096"), (150.0, "128k")], -4.0, 154.0)
    assert [label for _, _, label in kept] == ["4096", "128k"]
    for _, middle, label in kept:
        half = 0.6 * 12 * len(label) / 2
        assert middle - half >= -4
        assert middle + half <= 154
