"""The verification in the card: its figures are the report's, and a card says so when there are none."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ctxforge.errors import UsageError
from ctxforge.publish.card import render_card
from ctxforge.publish.card.stored import read_report
from ctxforge.verification import VerifyReport
from ctxforge.verification.html import figures, render_report
from tests.publish.card.builders import card, given, part, rows_of, stored, tokens, verified
from tests.verification.html_samples import awkward_report, everything, stored_report, with_external


def verification(report: VerifyReport | dict[str, Any]) -> str:
    document = report.to_dict() if isinstance(report, VerifyReport) else report
    return part(card(verify_report=document).text, "Verification")


def one_process(report: VerifyReport) -> VerifyReport:
    return dataclasses.replace(report, protocol=dataclasses.replace(report.protocol, processes=1))


@pytest.mark.parametrize("words", ["", "<b>|`"])
def test_a_stored_report_comes_back(words: str) -> None:
    """Through JSON and back, with everything that a report can hold, numbers that are none among it."""
    for report in (stored(), with_external(one_process(everything(words)), words), one_process(awkward_report(words))):
        document = json.loads(json.dumps(report.to_dict()))
        assert json.loads(json.dumps(read_report(document).to_dict())) == document
        assert read_report({"command": "verify", "report": document}).protocol == read_report(document).protocol


def test_the_tables_are_those_of_the_report() -> None:
    report, text = stored(), verification(stored())
    header, *rows = rows_of(text, "Perplexity of the whole context")
    assert header == ["context", "source", "result"]
    assert report.source is not None
    assert [float(row[2]) for row in rows] == [round(score.ppl, 2) for score in report.result.lengths]
    assert [float(row[1]) for row in rows] == [round(score.ppl, 2) for score in report.source.lengths]
    loss = dict(rows_of(text, "Loss inside the trained length"))
    assert report.short_context is not None
    assert loss["difference"] == f"{report.short_context.mean:+.4f}"
    found = [row for row in rows_of(text, "Retrieval by length") if row[:2] == ["2k", "result"]]
    assert found[0][2] == "38/40"
    assert report.protocol.text_sha256 in text
    assert report.protocol.needle_form.strip().replace("{", "").split()[0] in text


def test_the_headline() -> None:
    report, top = stored(), verified().text.partition("## What was changed")[0]
    assert report.source is not None
    assert report.short_context is not None
    ours, theirs = report.result.lengths[-1].ppl, report.source.lengths[-1].ppl
    words = f"At 2k: perplexity {ours:.2f} ({theirs:.2f} unmodified), 95 % of 40 answers found (83–99 %),"
    assert f"{words} {report.short_context.mean:+.4f} nats a token on short text." in top
    bare = dataclasses.replace(report, source=None, short_context=None)
    assert f"At 2k: perplexity {ours:.2f}, 95 % of 40 answers" in card(verify_report=bare.to_dict()).text


def test_a_smoke_test_is_no_evidence_of_quality() -> None:
    """Stored: `ctxforge verify DIR --tier smoke --report smoke.json` of the bundled model with yarn at 4x."""
    document = json.loads((Path(__file__).parent / "fixtures" / "smoke.json").read_text(encoding="utf-8"))
    made = card(verify_report=document)
    top = made.text.partition("## What was changed")[0]
    assert "Verification: **pass**. All 3 gates hold. At its target it has shown no more than that it runs" in top
    assert "Beyond that the config promises nothing, and no length was measured." in part(made.text, "Limits")
    assert "What the conversion costs on short text was not measured." in part(made.text, "Limits")
    assert "model-index" not in made.text
    assert set(made.files) == {"ctxforge-lambda.svg"}


def test_every_gate_with_its_interval() -> None:
    report, text = stored(), verification(stored())
    judgement = report.judgement
    assert judgement is not None
    table = text.partition("| gate |")[2].partition("\n\n")[0]
    assert len(judgement.results) >= 5
    for result in judgement.results:
        assert f"| {result.gate.name} | " in table
        if result.gate.basis == "interval" and result.interval is not None and result.interval.bounds is not None:
            low, high = result.interval.bounds
            row = next(line for line in table.splitlines() if line.startswith(f"| {result.gate.name} |"))
            bounds = row.split(" | ")[3].partition(" (")[0].split(" to ")
            assert float(bounds[0]) == pytest.approx(low, rel=6e-3, abs=6e-4)
            assert float(bounds[1]) == pytest.approx(high, rel=6e-3, abs=6e-4)
    assert f"**{judgement.verdict}**" in text
    for name, reason in judgement.left_out:
        assert f"- Left out: {name}, {reason}".replace("_", "") in text.replace("\\", "").replace("_", "")


def test_a_failed_verification_is_not_hidden() -> None:
    document = json.loads(json.dumps(stored().to_dict()))
    gate = document["judgement"]["gates"][0]
    gate["verdict"], document["result"]["finite"] = "fail", False
    made = card(verify_report=document).text
    assert "Verification: **fail**." in made.partition("## What was changed")[0]
    assert "**Broken numbers:**" in made


def test_what_was_left_out_and_what_was_not_compared() -> None:
    bare = dataclasses.replace(stored(), source=None, short_context=None, judgement=None, notes=("no source",))
    text = verification(bare)
    assert "The unmodified model was not measured, so nothing here is compared with it." in text
    assert "**not judged**: Measured without gates." in text
    assert "- Left out or changed: no source" in text
    assert "cost" not in text
    limits = part(card(verify_report=bare.to_dict()).text, "Limits")
    assert "What the conversion costs on short text was not measured." in limits


def test_nothing_verified_is_said_at_the_top_and_below() -> None:
    text = card().text
    assert "**Nothing was verified**: there are no figures behind the length" in text.partition("## What was")[0]
    assert "Nothing was verified." in part(text, "Verification")
    assert "nothing up to there was measured" in part(text, "Limits")
    assert "Nothing was verified" not in verified().text


def test_figures_of_other_lengths_are_marked() -> None:
    record = json.loads(json.dumps(given().provenance))
    record["plan"]["target_length"] = 4096
    text = card(provenance=record, verify_report=stored().to_dict()).text
    assert "**These figures are of other lengths** than the conversion was made for (512 and 4096 tokens)." in text
    assert "the longest text that was measured has 2048 tokens" in text
    assert "other lengths" not in verified().text


def test_the_pictures_are_the_reports() -> None:
    drawn = figures(stored())
    files = verified().files
    assert files["ctxforge-perplexity.svg"].decode() == drawn["perplexity"]
    assert files["ctxforge-retrieval.svg"].decode() == drawn["retrieval"]
    shown = [token.attrs["src"] for token in tokens(verified().text) if token.type == "image"]
    assert sorted(shown) == sorted(files)


def test_everything_that_was_measured_stands_in_the_card() -> None:
    """Each table of the HTML report, which knows no plan here."""
    report = with_external(one_process(everything()), "")
    captions = set(re.findall(r"<caption>(.*?)</caption>", render_report(report, title="t", command="c")))
    text = verification(report).replace("\\", "")
    missing = {caption for caption in captions if f"**{caption}**" not in text}
    # The first two stand below their own words; outputs of tasks are for the page.
    assert missing == {"Protocol", "Versions", "One output a task, a wrong one where there is one"}
    assert len(captions) >= 11
    assert "| sdpa |" in text
    assert "lm-eval" in text


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"protocol": None},
        {"protocol": {}},
        {"result": []},
        {"short_context": {"length": "x", "differences": [], "mean": 0}},
        {"judgement": {"gates": [{"verdict": "maybe"}]}},
        {"judgement": []},
        {"judgement": {"gates": [{"name": "{% raw %}", "verdict": "pass"}]}},
        {"notes": "text"},
        {"result": {"label": 1}},
    ],
)
def test_what_is_no_report_is_refused(change: dict[str, Any]) -> None:
    document = {**json.loads(json.dumps(stored().to_dict())), **change}
    with pytest.raises(UsageError) as refused:
        render_card(given(verify_report=document))
    assert "report" in refused.value.cause
    with pytest.raises(UsageError, match="no verification report"):
        render_card(given(verify_report={"a": 1}))


def test_a_report_of_an_earlier_version() -> None:
    """Without the fields that came later."""
    document = json.loads(json.dumps(stored_report().to_dict()))
    del document["protocol"]["processes"]
    for name in ("tasks", "protocols", "far_context", "beyond", "truncated"):
        document["result"].pop(name, None)
    found = read_report(document)
    assert found.protocol.processes == 1
    assert found.result.beyond == ()
    assert all(math.isfinite(score.ppl) for score in found.result.lengths)
