"""The hand-over to lm-eval, as far as it goes without lm-eval; test_external_engine.py runs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxforge.errors import InternalError, ResourceError, UsageError
from ctxforge.sources import bundled_model
from ctxforge.verification.external import (
    BENCHMARKS,
    Budget,
    ExternalOptions,
    asked_length,
    external_options,
    run_external,
)
from ctxforge.verification.external.assemble import Answers, Asked, averages, difference, score, task_scores
from ctxforge.verification.external.require import needed_modules, release
from ctxforge.verification.gates.tiers import TIERS

INSTALLED = importlib.util.find_spec("lm_eval") is not None


def test_tier_names_expand_to_lm_evals_tasks() -> None:
    options = external_options(["ruler", "longbench"], [8192, 4096, 4096])
    assert options.lengths == (4096, 8192)
    assert len(options.names) == 14
    assert options.names[0] == "niah_single_1"
    assert options.names[-1] == "longbench"
    assert set(TIERS["full"].external) <= set(BENCHMARKS)
    assert external_options(["short"], []).names == ("arc_easy", "hellaswag", "piqa", "winogrande")


@pytest.mark.parametrize(
    ("choices", "cause"),
    [
        ({"tasks": ()}, "no benchmark"),
        ({"tasks": ("ruler",)}, "without a length"),
        ({"tasks": ("short",), "limit": 0}, "limit"),
        ({"tasks": ("short",), "too_long": "cut"}, "too_long"),
        ({"tasks": ("niah_single_1",), "lengths": (0,)}, "not a length"),
    ],
)
def test_bad_options_are_refused(choices: dict[str, Any], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        ExternalOptions(**choices)


def test_budget_counts_as_lm_eval_cuts() -> None:
    # huggingface.py: prompts are cut to max_length - max_gen_toks, scored pairs to the last max_length + 1 tokens.
    assert Budget(512).fits_generation(500, 12)
    assert not Budget(512).fits_generation(501, 12)
    assert Budget(512).fits_scoring(500, 13)
    assert not Budget(512).fits_scoring(500, 14)


def test_ruler_is_asked_for_less_only_at_a_limit() -> None:
    assert asked_length(4096, (16384,), 60) == 4096
    assert asked_length(16384, (16384,), 60) == 16324
    # The source's limit counts where the source can be measured at all.
    assert asked_length(8192, (16384, 8192), 60) == 8132
    assert asked_length(16384, (16384, 8192), 60) == 16324
    with pytest.raises(UsageError, match="sees 16384"):
        asked_length(32768, (16384, 8192), 60)
    with pytest.raises(UsageError, match="no room"):
        asked_length(60, (60,), 60)


def test_what_is_reserved_around_a_ruler_prompt() -> None:
    from transformers import AutoTokenizer

    from ctxforge.verification.external.room import reserve

    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    assert reserve("ruler_fwe", tokenizer, chat_template=False) == 50 + 8
    # A byte a token: "The special magic number for ... is" around a word of 29 letters, and 8 for the seam.
    assert reserve("niah_single_1", tokenizer, chat_template=False) == 63 + 29 + 8
    # 4096 must stay 4096: below it, lm-eval draws other frequencies.
    assert reserve("ruler_cwe", tokenizer, chat_template=False) == 0


def samples(values: list[float], *, metric: str = "acc", key: str = "none", salt: str = "") -> list[dict[str, Any]]:
    return [
        {"doc_id": n, "doc_hash": f"{salt}{n}", "filter": key, "metrics": [metric], metric: value}
        for n, value in enumerate(values)
    ]


def test_scores_pair_by_document_and_drop_what_was_left_out() -> None:
    result = Answers(samples([1, 1, 0, 1, 0, 1, 1, 1, 0, 0]), frozenset({9}), longest=70)
    source = Answers(samples([1, 0, 0, 1, 1, 1, 0, 1, 1, 1]), frozenset({8, 9}))
    (found,) = task_scores(Asked("some_task", "1.0"), result, source)
    assert found.result is not None
    assert found.source is not None
    assert found.difference is not None
    assert (found.result.value, found.result.units) == (pytest.approx(6 / 9), 9)
    assert (found.source.value, found.source.units) == (pytest.approx(5 / 8), 8)
    # Over documents 0 to 7: 6 against 5 of 8, not 6/9 - 5/8.
    assert found.difference.value == pytest.approx(1 / 8)
    assert found.difference.low is not None
    assert found.difference.low < 0 < 1 / 8 < found.difference.high  # type: ignore[operator]
    assert (found.documents, found.left_out, found.source_left_out, found.paired) == (10, 1, 2, 8)
    assert found.note == ("left out: 1 of 10, too long for the result; left out: 2 of 10, too long for the source")
    with pytest.raises(InternalError, match="other documents"):
        task_scores(Asked("some_task"), result, Answers(samples([1.0] * 10, salt="x")))


def test_intervals_of_scores() -> None:
    wilson = score([1.0] * 20)
    assert wilson is not None
    assert wilson.low == pytest.approx(0.8389, abs=1e-4)
    graded = score([0.25, 0.5] * 8)
    assert graded is not None
    assert graded.method.startswith("paired bootstrap")
    few = difference([1.0] * 7, [0.0] * 7)
    assert few is not None
    assert few.bounds is None
    assert "too few" in few.method
    # Twenty right answers of either model: the bootstrap alone would claim a difference of exactly 0.
    same = difference([1.0] * 20, [1.0] * 20)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, pytest.approx(-0.1611, abs=1e-4), pytest.approx(0.1611, abs=1e-4))
    alike = difference([0.5] * 9, [0.25] * 9)
    assert alike is not None
    assert alike.bounds is None
    assert score([]) is None


def test_rulers_metric_is_the_length_asked_for() -> None:
    rows = samples([1, 0, 1], metric="2000")
    for row in rows:
        row.update({"metrics": ["4096", "2000"], "4096": -1.0})
    (found,) = task_scores(Asked("ruler_qa_squad", "1.0", 2048, 2000), Answers(rows), None)
    assert (found.benchmark, found.metric, found.length) == ("ruler", "string_match_part", 2048)
    assert found.result is not None
    assert found.result.value == pytest.approx(2 / 3)
    assert any("averages over the reference answers" in trap for trap in found.traps)
    assert any("Asked for at 2000" in trap for trap in found.traps)
    (mean,) = averages([found])
    assert (mean.length, mean.tasks, mean.of, mean.source) == (2048, 1, 13, None)


def test_metrics_that_are_no_number_a_document_are_left_out() -> None:
    rows = samples([1.0, 0.0])
    for row in rows:
        row.update({"metrics": ["acc", "f1"], "f1": (0, 1)})
    assert [each.metric for each in task_scores(Asked("t"), Answers(rows), None)] == ["acc"]


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_the_message_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="needs lm-eval") as error:
        run_external(tmp_path / "no such folder", options=external_options(["short"], []))
    assert error.value.remedy == "Install it: pip install 'ctxforge-llm[eval]'"


def test_packages_that_benchmarks_import() -> None:
    assert needed_modules(["short"]) == {}
    assert set(needed_modules(["ruler", "longbench"])) == {"RULER", "LongBench"}
    assert set(needed_modules(["longbench_qasper", "longbench2"])) == {"LongBench"}
    assert release("0.4.13.dev2") == (0, 4, 13) > release("0.4.9") > release("unknown")


def test_importing_the_package_imports_neither_torch_nor_lm_eval() -> None:
    code = (
        "import sys, ctxforge.verification.external\nassert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
