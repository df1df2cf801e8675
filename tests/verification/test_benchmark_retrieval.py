"""The retrieval benchmark: its three sides agree on a real model, and a difference in any of them fails it."""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from ctxforge.sources import bundled_model, bundled_text
from ctxforge.verification.needles import Haystack, plant
from tests.verification import bundled
from tests.verification.tiny import byte_tokenizer, prose, tiny

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval.py"


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("retrieval_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(bundled_text()[:4000], "utf-8")
    given = ["--model", str(bundled_model()), "--text", str(tmp_path / "text.txt")]
    return [*given, "--lengths", "128,256,384", "--depths", "4", "--threads", "1"]


def tiny_stack(seed: int = 0) -> Haystack:
    tokenizer = byte_tokenizer()
    body = tokenizer(prose(300), add_special_tokens=False)["input_ids"]
    return plant(tokenizer, body, lengths=(100, 200), strata=3, seed=seed)


def test_the_sides_agree_on_the_bundled_model(
    bench: ModuleType, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert bench.main([*arguments, "--generate", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["problems"] == []
    assert figures["difference"] < 1e-4
    sides = {side: runs[0] for side, runs in figures["runs"].items()}
    assert sides["ours"]["way"] == "branch rows"
    losses = {side: [cell["nll"] for cell in result["cells"]] for side, result in sides.items()}
    assert losses["ours"] == pytest.approx(losses["prompts"], abs=1e-4)
    assert max(losses["ours"]) - min(losses["ours"]) > 0.01
    verdicts = [[cell["exact"] for cell in result["cells"]] for result in sides.values()]
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert 0 < sum(verdicts[0]) < len(verdicts[0]) >= 8
    assert all(cell["at"][0] in (128, 256, 384) for cell in sides["ours"]["cells"])
    printed = capsys.readouterr().out
    assert "× faster than one prompt a cell" in printed
    assert "× faster than greedy generation" in printed


def test_other_numbers_in_the_context_are_a_disagreement(bench: ModuleType) -> None:
    """Negative control: the peer reads a haystack in which a digit of every needle is another one."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    body = tokenizer(bundled_text()[:1000], add_special_tokens=False)["input_ids"]
    model, stack = bundled.plain(), plant(tokenizer, body, lengths=(200, 400), strata=3, seed=0)
    sides = {"ours": bench.ours(model, stack), "prompts": bench.one_prompt_a_cell(model, stack)}
    assert bench.disagreements(sides, 1e-4, exactly=True)[0] == []
    ids = list(stack.ids)
    for start, needle in zip(stack.starts, stack.needles, strict=True):
        ids[start + len(needle.question) + 1] += 1
    sides["prompts"] = bench.one_prompt_a_cell(model, replace(stack, ids=tuple(ids)))
    problems, worst = bench.disagreements(sides, 1e-4, exactly=True)
    assert worst > 0.5
    assert any("the losses differ" in problem for problem in problems)
    assert any("answers are found" in problem for problem in problems)


def test_each_kind_of_difference_is_named(bench: ModuleType) -> None:
    model, stack = tiny(), tiny_stack()
    right = {"ours": bench.ours(model, stack), "prompts": bench.one_prompt_a_cell(model, stack)}

    def broken(key: str, value: Any) -> dict[str, Any]:
        sides = copy.deepcopy(right)
        sides["prompts"]["cells"][1][key] = value
        return sides

    assert bench.disagreements(right, 1e-4, exactly=True)[0] == []
    mine = right["ours"]["cells"][1]
    for key, value, said in (
        ("exact", not mine["exact"], "whether 1 answers are found"),
        ("nll", mine["nll"] + 2e-4, "the losses differ by 2.0e-04"),
        ("nll", float("nan"), "the losses differ by nan"),
        ("at", [1, 1, "word"], "same cells"),
    ):
        problems, _ = bench.disagreements(broken(key, value), 1e-4, exactly=True)
        assert len(problems) == 1, (key, problems)
        assert said in problems[0]
    assert bench.disagreements(broken("exact", not mine["exact"]), 1e-4, exactly=False)[0] == []


def test_an_answer_longer_than_what_is_generated_has_no_verdict(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stack = tiny(), tiny_stack()
    sides = {"ours": bench.ours(model, stack), "prompts": bench.one_prompt_a_cell(model, stack)}
    monkeypatch.setattr(bench, "NEW_TOKENS", 3)
    sides["generation"] = bench.generation(model, stack)
    assert {cell["exact"] for cell in sides["generation"]["cells"]} == {None}
    assert bench.disagreements(sides, 1e-4, exactly=True)[0] == []


@pytest.mark.parametrize(("seconds", "check", "code"), [(9.0, True, 1), (9.0, False, 0), (11.0, True, 0)])
def test_a_missed_goal_fails_only_a_check(
    bench: ModuleType,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    check: bool,
    code: int,
) -> None:
    cell = {"at": [128, 0, "word"], "nll": 1.0, "exact": True}
    times = {"ours": 1.0, "prompts": seconds}
    monkeypatch.setattr(
        bench,
        "_run",
        lambda side, _options: {"seconds": times[side], "cpu": 1.0, "mb": 1.0, "way": side, "cells": [cell]},
    )
    assert bench.main([*arguments, *(["--check"] if check else [])]) == code
    assert ("missed" if seconds < 10 else "met") in capsys.readouterr().out


def test_a_difference_fails_whatever_the_speed(
    bench: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {"ours": 1.0, "prompts": 1.001}
    monkeypatch.setattr(
        bench,
        "_run",
        lambda side, _options: {
            "seconds": 1.0 if side == "ours" else 99.0,
            "cpu": 1.0,
            "mb": 1.0,
            "way": side,
            "cells": [{"at": [128, 0, "word"], "nll": losses[side], "exact": True}],
        },
    )
    assert bench.main(arguments) == 1
    assert "differ by 1.0e-03" in capsys.readouterr().err
