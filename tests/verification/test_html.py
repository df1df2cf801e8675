"""The report page: what it says, what it must never do, and that nobody needs to see colours to read it."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ctxforge.templates_dir import templates_dir
from ctxforge.verification.gates import Judgement, Verdict
from ctxforge.verification.heatmap import colour_of, contrast
from ctxforge.verification.html import figures, render_comparison, render_report
from ctxforge.verification.html.rotation import rotary_tables
from ctxforge.verification.plot import bucket_intervals, curve_of
from ctxforge.verification.statistics import paired_bootstrap
from ctxforge.verification.svg import light, style
from tests.verification.html_samples import (
    COMMAND,
    EFFECTIVE,
    ENDLESS,
    HOSTILE,
    PLAN,
    awkward_plan,
    awkward_report,
    comparison_rows,
    everything,
    judged,
    stored_report,
    with_external,
)

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask about."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rendered(**changes: Any) -> str:
    report = stored_report()
    given = {
        "judgement": judged(report),
        "effective": EFFECTIVE,
        "plan": PLAN,
        "title": "bundled, yarn to 2k",
        "command": COMMAND,
    }
    return render_report(report, **{**given, **changes})


def compared(rows: Any = None, **changes: Any) -> str:
    given = {
        "trained_length": 512,
        "target_length": 2048,
        "score": "loss before 2k, nats a token",
        "higher_is_better": False,
        "protocol": stored_report().protocol,
        "title": "bundled",
        "command": "ctxforge compare bundled --methods none,pi,yarn --to 4x",
    }
    return render_comparison(comparison_rows() if rows is None else rows, **{**given, **changes})


def awkward(words: str = HOSTILE) -> str:
    report = awkward_report(words)
    judgement = judged(stored_report(), broken=True)
    judgement = dataclasses.replace(judgement, left_out=(*judgement.left_out, (words, words)))
    effective = dataclasses.replace(EFFECTIVE, words=words)
    return render_report(
        report, judgement=judgement, effective=effective, plan=awkward_plan(words), title=words, command=words
    )


def full(words: str = "") -> str:
    report = with_external(everything(words), words)
    return render_report(report, judgement=judged(stored_report()), plan=PLAN, title="t", command="c")


PAGES = {
    "report": rendered,
    "full": full,
    "comparison": compared,
    "awkward": awkward,
    "endless": lambda: awkward(ENDLESS),
}


def test_report_says_what_was_measured() -> None:
    page = Page(rendered())
    for words in (
        "inconclusive",
        "1 of 5 gates can't be decided: use.",
        "bundled, yarn to 2k",
        "95 % 1k to 2k",
        COMMAND,
        "83–99 %",  # Wilson of 38 of 40
        "38/40",
        "3.15",
        "9.53",
        "16 of 512 tokens",
        "+0.0081",
        "transformers 5.24.0",
        PLAN["warnings"][0],
        "1.1386",  # YaRN's temperature 0.1 ln 4 + 1
    ):
        assert words in page.text, words
    assert "dc6fe61edbc097fd6b2d139cdb10a5369ffc8bea2599e4eafe516bfb7196e481" in page.text


def test_every_gate_stands_there_with_its_numbers_and_a_word() -> None:
    report = stored_report()
    judgement = judged(report, broken=True)
    content = render_report(report, judgement=judgement, title="t", command="c")
    rows = re.findall(r'<tr role="row">\n<th scope="row".*?</tr>', content, re.DOTALL)
    assert len(rows) == len(judgement.results)
    for row, result in zip(rows, judgement.results, strict=True):
        text = Page(row).text
        assert text.startswith(result.gate.name)
        assert result.gate.explanation in text
        assert f"{result.gate.direction} {result.gate.threshold:.3g}" in text
        symbol = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INCONCLUSIVE: "?"}[result.verdict]
        assert f"{symbol} {result.verdict}" in text
    assert {result.verdict for result in judgement.results} == set(Verdict)
    short = next(row for row in rows if "short_nll" in row)
    assert "0.00812 nats a token 0.000920 to 0.0153 (16 units)" in Page(short).text
    # The same number has the same interval further down.
    assert "+0.0009 to +0.0153" in Page(content).text
    (interval,) = paired_bootstrap(report.short_context.differences)  # type: ignore[union-attr]
    assert interval.bounds == pytest.approx((0.00092, 0.0153), abs=2e-4)
    use = next(row for row in rows if ">use<" in row)
    assert "not measured" in Page(use).text
    assert "It was not asked for" in Page(use).text


def test_verdict_in_the_head_and_without_one() -> None:
    report = stored_report()
    assert "<title>fail: x</title>" in rendered(judgement=judged(report, broken=True), title="x")
    plain = rendered(judgement=None, effective=None, plan=None)
    assert "not judged" in plain
    assert "<h2>Gates" not in plain
    assert "Rotation" not in plain
    own = dataclasses.replace(report, judgement=judged(report, broken=True), effective=EFFECTIVE)
    assert 'class="verdict fail"' in render_report(own, title="x", command="c")
    assert "No gate was judged." in rendered(judgement=Judgement(()))


@pytest.mark.parametrize("name", PAGES)
def test_page_needs_nothing_else(name: str) -> None:
    content = PAGES[name]()
    page = Page(content)
    assert not {"script", "iframe", "img", "object", "embed", "base", "form", "image", "use"} & {
        t for t, _ in page.tags
    }
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "xlink:href", "action", "data", "poster"):
                assert value == "data:,", (tag, key, value)
    sheet = "".join(re.findall(r"<style>(.*?)</style>", content, re.DOTALL))
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert content == PAGES[name]()


@pytest.mark.parametrize("name", PAGES)
def test_tables_and_figures_speak(name: str) -> None:
    content = PAGES[name]()
    page = Page(content)
    tables = re.findall(r"<table.*?</table>", content, re.DOTALL)
    assert len(tables) >= 5
    for table in tables:
        assert '<th scope="col"' in table
        assert table.count("<tr") - 1 == table.count('<th scope="row"') > 0
        width = table.partition("</tr>")[0].count("<th ")
        bodies = re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]
        assert all(row.count("<td") + row.count("<th ") == width for row in bodies)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    # Both layouts; the ranking is a figure of its own.
    assert len(drawings) == (8 if name == "comparison" else 6)
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in drawings)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in page.tags


@pytest.mark.parametrize("name", ["awkward", "comparison"])
def test_others_words_stay_words(name: str) -> None:
    if name == "awkward":
        content = awkward()
    else:
        content = compared(comparison_rows((f"none{HOSTILE}", "b"), HOSTILE), title=HOSTILE, command=HOSTILE)
    assert "<script" not in content
    assert "<img" not in content
    assert HOSTILE in Page(content).text
    assert "&amp;amp;" in content


def test_values_that_are_not_finite_are_named() -> None:
    text = Page(awkward("words")).text
    assert "Broken numbers" in text
    assert "not a number" in text
    assert "infinite" in text
    assert "No source was given" in text
    assert "No intervals: 3 windows" in text


def test_reports_with_parts_missing() -> None:
    report = stored_report()
    bare = dataclasses.replace(report.result, lengths=(), buckets=(), window_buckets=(), retrieval=(), answers=())
    page = Page(rendered_of(dataclasses.replace(report, result=bare, source=None, short_context=None)))
    assert "not judged" in page.text
    assert not [tag for tag, _ in page.tags if tag == "svg"]
    for missing in ("Perplexity", "Retrieval", "Short context"):
        assert missing not in page.text


def rendered_of(report: Any) -> str:
    return render_report(report, title="t", command="c")


@pytest.mark.parametrize(
    "plan",
    [{}, {"tables": None}, {"tables": [{}]}, {"tables": [{"divisors": "x"}]}, {"tables": [], "warnings": "no list"}],
)
def test_plans_without_rotation(plan: dict[str, Any]) -> None:
    assert rotary_tables(plan) == []
    assert "not judged" in render_report(stored_report(), plan=plan, title="t", command="c")


def test_figures_of_a_report() -> None:
    found = figures(stored_report(), plan=PLAN)
    assert list(found) == ["perplexity", "retrieval", "rotation"]
    assert found["retrieval"].count("L0 = 512") == 1
    assert "pair 31 4" in found["rotation"]
    # 8 windows are just enough for bands of both models.
    assert found["perplexity"].count("<polygon") == 2


def test_one_turn_is_where_the_wavelength_is_the_trained_length() -> None:
    svg = figures(stored_report(), plan=PLAN)["rotation"]
    (mark,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="mark"/>', svg)
    points = re.findall(r'class="curve s1"', svg), re.search(r'<polyline points="([^"]+)" class="curve s1"', svg)
    assert points[1] is not None
    xs = [float(point.split(",")[0]) for point in points[1][1].split()]
    pair = 31 * (float(mark) - xs[0]) / (xs[-1] - xs[0])
    assert 2 * math.pi * 10000 ** (2 * pair / 64) == pytest.approx(512, rel=0.01)


def test_bands_are_the_bootstrap_over_windows() -> None:
    result = stored_report().result
    curve = curve_of(result)
    for column, interval in enumerate(bucket_intervals(result)):
        (expected,) = paired_bootstrap(
            [w[column].nll for w in result.window_buckets], [w[column].tokens for w in result.window_buckets]
        )
        # The same windows in other resamples: the bounds agree to their own noise.
        assert expected.bounds is not None
        assert interval.bounds == pytest.approx([math.exp(bound) for bound in expected.bounds], rel=0.02)
        assert curve.lows[column] <= curve.values[column] <= curve.highs[column]
    assert curve_of(dataclasses.replace(result, window_buckets=result.window_buckets[:7])).lows == ()


@pytest.mark.parametrize("share", [i / 50 for i in range(51)])
def test_cells_are_legible_at_any_loss(share: float) -> None:
    fill, ink = colour_of(share * math.log(10))
    assert contrast(fill, ink) >= 4.5
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


def test_verdict_colours_are_legible() -> None:
    sheet = (templates_dir() / "report" / "page.css").read_text(encoding="utf-8")
    light_part, dark_part = sheet.split("prefers-color-scheme: dark", 1)
    colours: dict[str, tuple[int, int, int]] = {}
    for part in (light_part, dark_part.partition("* {")[0]):
        colours |= {n: tuple(bytes.fromhex(c)) for n, c in re.findall(r"--([\w-]+): #(\w{6})", part)}  # type: ignore[misc]
        for ink, paper in (
            ("ink", "paper"),
            ("soft", "paper"),
            ("soft", "panel"),
            *((v, f"{v}-paper") for v in ("pass", "fail", "inconclusive")),
        ):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


def test_light_figures_hold_no_media_query() -> None:
    svg = figures(stored_report(), plan=PLAN)["retrieval"]
    assert "@media" in svg
    assert "@media" not in light(svg)
    assert light(svg).endswith("</svg>\n")
    # Styles reach nothing outside of the figure.
    rules = re.findall(r"(?:^|[}{])([^{}@]+)\{", style().replace("@media (prefers-color-scheme: dark){", "{"))
    assert len(rules) > 20
    assert all(rule.startswith(".ctxforge-figure ") for rule in rules)


def test_importing_the_pages_imports_no_torch() -> None:
    code = "import sys, ctxforge.verification.html; assert not {'torch', 'transformers', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
