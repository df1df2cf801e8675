"""Tasks, protocols, far context and lm-eval's scores on the pages and in the command line's tables."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from ctxforge.verification.html import render_comparison, render_report
from ctxforge.verification.html.protocol_tables import far_context, parameters_words, protocol_notes, protocol_scores
from ctxforge.verification.html.task_tables import task_outputs, task_scores
from ctxforge.verification.protocols.result import DocumentScore
from ctxforge.verification.protocols.rolling import RollingResult, TextLength
from ctxforge.verification.statistics import paired_bootstrap
from ctxforge.verification.tables import render_table
from ctxforge.verification.tasks import TASKS
from tests.verification.html_samples import (
    HOSTILE,
    comparison_rows,
    everything,
    far_context_of,
    protocol_of,
    stored_report,
    tasks_of,
    with_external,
)
from tests.verification.test_html import Page


def page_of(report: Any) -> str:
    return render_report(report, title="t", command="c")


def models() -> list[Any]:
    report = everything()
    assert report.source is not None
    return [report.source, report.result]


def test_tasks_a_row_each() -> None:
    table = task_scores(models(), 512)
    assert table.header[:4] == ("task", "context", "source: exact (95 %)", "result: exact (95 %)")
    rows = {row[:2]: row[2:] for row in table.rows}
    assert list(rows) == [
        ("passkey", "512\u00a0(L0)"),
        ("passkey", "2k"),
        ("multi-value", "512\u00a0(L0)"),
        ("multi-value", "2k"),
    ]
    # Wilson of 8 of 8 is 67.6 to 100 %, of 6 of 8 it is 40.9 to 92.9 %; nats are the mean of 0.25, 0.5 ... 2.
    assert rows["passkey", "512\u00a0(L0)"] == ("8/8 (68–100 %)", "6/8 (41–93 %)", "1.12", "1.12", "–", "–")
    assert rows["passkey", "2k"] == ("–", "6/8 (41–93 %)", "–", "1.12", "–", "–")
    # Three prompts are too few, and say so; recall is the mean of 1, 1/4 and 1/4.
    assert rows["multi-value", "2k"] == ("–", "1/3 (6–79 %)\u00a0*", "–", "–", "–", "50 %")
    assert "fewer than 8 prompts" in table.note


def test_tasks_of_many_models_have_a_row_a_model() -> None:
    many = [dataclasses.replace(models()[1], label=f"m{i}") for i in range(3)]
    table = task_scores(many, 512)
    assert table.header == ("task", "context", "model", "exact (95 %)", "answer nats", "recall")
    assert len(table.rows) == 3 * 4
    enough = dataclasses.replace(many[0], tasks=tuple(s for s in many[0].tasks if s.task == "passkey"))
    assert task_scores([enough], 512).note == ""
    assert "recall" not in " ".join(task_scores([enough], 512).header)


def test_what_a_task_means_is_on_the_page() -> None:
    text = Page(page_of(everything())).text
    for name in ("passkey", "multi-value"):
        assert TASKS[name].shows in text
    unknown = dataclasses.replace(
        stored_report().result, tasks=(dataclasses.replace(tasks_of((512,))[0], task="mine"),)
    )
    assert "mine" in Page(page_of(dataclasses.replace(stored_report(), result=unknown))).text


def test_generated_answers_show_a_wrong_one_and_stay_words() -> None:
    result = dataclasses.replace(stored_report().result, tasks=tasks_of((2048,), HOSTILE))
    assert [row[3:] for row in task_outputs([result], 512).rows] == [("no", f"one {HOSTILE}")]
    silent = dataclasses.replace(result, tasks=tuple(s for s in result.tasks if s.output == ""))
    assert task_outputs([silent], 512).rows[0][-1] == "(nothing)"
    long = dataclasses.replace(result, tasks=(dataclasses.replace(result.tasks[-1], output="word \n" * 99),))
    assert len(task_outputs([long], 512).rows[0][-1]) < 170
    content = page_of(everything(HOSTILE))
    assert "<script" not in content
    assert "<img" not in content
    assert f"one {HOSTILE}" in Page(content).text


def test_protocols_stand_with_their_traps() -> None:
    table = protocol_scores(models(), 512)
    rows = {row[0]: row for row in table.rows}
    # exp(1.135) and exp(2.135): the documents' losses run from 1.1 to 1.17 and from 2.1 to 2.17.
    assert rows["yarn-sliding"][1:5] == (
        "2k",
        f"{math.exp(2.135):.2f}",
        f"{math.exp(1.135):.2f}",
        "-1.0000 (-1.0000 to -1.0000)",
    )
    assert rows["yarn-sliding"][5:] == ("8", "16", "800")
    assert "(too few: 2)" in rows["one-pass"][4]
    text = Page(page_of(everything())).text
    assert "stride 256; windows over whole documents" in text
    assert "own knob: x" in text
    assert "Numbers of different protocols do not compare" in text
    assert "Windows reach over documents." in text
    alone = protocol_scores(models()[1:], 512)
    assert "difference" not in " ".join(alone.header)
    lost = dataclasses.replace(models()[1], protocols=(protocol_of("lm-eval", 2048, math.nan),))
    assert "not a number" in protocol_scores([lost], 512).rows[0]


def test_parameters_that_differ_by_length_are_told_apart() -> None:
    short, long = protocol_of("yarn", 512, 1.0), protocol_of("yarn", 2048, 1.0)
    long = dataclasses.replace(long, parameters={"stride": 2047})
    same = dataclasses.replace(stored_report().result, protocols=(short, dataclasses.replace(short, length=2048)))
    other = dataclasses.replace(same, protocols=(short, long))
    assert len(protocol_notes([same, same])[0][1]) == 1
    ((_, ways, traps),) = protocol_notes([same, other])
    assert ways[0].startswith("512, 2k: stride 256")
    assert ways[1] == "2k: stride 2047"
    assert len(traps) == 2


def test_lm_evals_own_units_stand_beside_its_protocol() -> None:
    document = DocumentScore(1.0, 9.0, 9, 1)
    rolling = RollingResult(
        "lm-eval", 2048, {}, (), (document,), 1.0, math.e, 9, 1, "a pass", (TextLength(5, 30),), 6.05, 1.35, 0.433
    )
    result = dataclasses.replace(stored_report().result, protocols=(rolling,))
    ((_, ways, _),) = protocol_notes([result])
    assert ways[-1] == "as lm-eval reports it: result 6.05 a word, 0.433 bits a byte"


def test_parameters_in_words() -> None:
    given = {"stride": 256, "truncate": True, "prefix_tokens": 1, "mean": "over windows", "shorter_documents": 0}
    assert parameters_words(given) == (
        "stride 256; documents cut to one window; a prefix token before each window; mean over windows"
    )
    assert parameters_words({"shorter_documents": 3}) == "3 documents shorter than the window"
    assert parameters_words({"concatenated": True, "batch_size": 1, "base": 2.71828}) == (
        "documents as one stream; 2.71828 ** loss"
    )


def test_far_context_has_its_interval() -> None:
    table = far_context(models())
    source, result = table.rows
    gains = [0.1 * i for i in range(8)]
    (interval,) = paired_bootstrap(gains)
    assert interval.bounds is not None
    low, high = interval.bounds
    assert low < 0.35 < high
    assert result == ("result", "+0.3500", f"{low:+.4f} to {high:+.4f}", "2.72", "320 of 14336 (2.2 %)")
    # A model without key tokens has no LongPPL.
    assert source == ("source", "-0.1000", "-0.1000 to -0.1000", "–", "0 of 14336 (0 %)")
    text = Page(page_of(everything())).text
    assert "The short context has 256 to 320 tokens" in text
    assert "over the tokens from number 512 on" in text
    few = dataclasses.replace(models()[1], far_context=far_context_of(0.1, math.nan))
    assert far_context([few]).rows[0][1:3] == ("not a number", "none")


@pytest.fixture
def handed_over() -> Any:
    return with_external(everything())


def test_scores_of_lm_eval(handed_over: Any) -> None:
    text = Page(page_of(handed_over)).text
    for words in (
        "lm-eval 0.4.9, float32 on cpu, no chat template, shots as the tasks say",
        "2k tokens for the result, 512 for the source",
        "0.750 (0.700–0.800)",
        "0.500 (0.400–0.600)",
        "-0.250 (-0.300 to -0.200)",
        "100 of 101 1 | 3",
        "0.500 (too few)",
        "1 of 13: not the published average",
        "ruler_qa_squad at 2k: no data",
        "a trap of all",
        "ruler_vt: spaces count",
    ):
        assert words in text, words
    content = page_of(with_external(handed_over, HOSTILE))
    assert "<script" not in content
    assert f"spaces count {HOSTILE}" in Page(content).text


def test_sections_only_where_measured() -> None:
    text = Page(page_of(stored_report())).text
    for heading in ("Tasks", "Far context", "by protocol", "lm-evaluation", "Left out or changed"):
        assert heading not in text
    assert "a task was left out" in Page(page_of(everything())).text


def test_comparison_shows_tasks_too() -> None:
    measured = everything().result
    rows = [dataclasses.replace(row, measures=measured) for row in comparison_rows()]
    given = {"trained_length": 512, "target_length": 2048, "score": "s", "higher_is_better": False}
    text = Page(render_comparison(rows, title="t", command="c", **given)).text
    for heading in ("Tasks", "Far context", "Perplexity by protocol"):
        assert heading in text
    assert "passkey 512 (L0) yarn 6/8 (41–93 %)" in text.replace("\u00a0", " ")


def test_command_line_tables(handed_over: Any) -> None:
    found = {title: (header, rows) for title, header, rows in render_table(handed_over)}
    assert ("passkey", "2k", "–", "6/8") in found["Tasks, exact answers"][1]
    assert found["Perplexity by protocol"][1][0][:4] == ("yarn-sliding", "2k", f"{math.exp(2.135):.2f}", "3.11")
    assert ("result", "+0.3500", "2.72", "320 of 14336") in found["Far context"][1]
    assert ("ruler_vt string_match_all", "2k", "0.750", "0.500", "-0.250") in found["lm-eval"][1]
    assert any("cpu" in cell for row in found["Protocol"][1] for cell in row)
    bare = {title for title, _, _ in render_table(stored_report())}
    assert not {"Tasks, exact answers", "Perplexity by protocol", "Far context", "lm-eval"} & bare
    for _, header, rows in render_table(handed_over):
        assert {len(row) for row in rows} == {len(header)}


def test_protocol_names_attention_processes_and_device() -> None:
    report = stored_report()
    shared = dataclasses.replace(report.protocol, processes=4, threads=2, device="cuda")
    text = Page(page_of(dataclasses.replace(report, protocol=shared))).text
    assert "float32 on cuda, 4 processes of 2 CPU threads" in text
    assert re.search(r"attention sdpa", text)
