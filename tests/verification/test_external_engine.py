"""The hand-over to lm-eval with lm-eval: needs lm_eval[ruler] installed beside the package."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.errors import ResourceError, UsageError
from ctxforge.sources import bundled_model
from ctxforge.verification.external import (
    ExternalOptions,
    ExternalReport,
    require_lm_eval,
    run_external,
)
from ctxforge.verification.external.require import release
from tests.verification import bundled

TASKS = Path(__file__).parent / "fixtures" / "external"
engine = pytest.mark.engine


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, L0 = 512, extended to 2048."""
    from ctxforge.pipeline import extend
    from ctxforge.recipe import ConversionRecipe, OutputOptions, parse_method
    from ctxforge.sources import BUNDLED

    out = tmp_path_factory.mktemp("external") / "yarn"
    return extend(ConversionRecipe(source=BUNDLED, method=parse_method("yarn"), to="2k"), OutputOptions(out=out)).out


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The task files, with their data found wherever the tests run from."""
    folder = tmp_path_factory.mktemp("tasks") / "external"
    shutil.copytree(TASKS, folder)
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace("FOLDER", folder.as_posix()))
    return str(folder)


@pytest.fixture(scope="module")
def report(extended: Path, tasks: str) -> ExternalReport:
    pytest.importorskip("lm_eval")
    options = ExternalOptions(tasks=("ctxforge_choice", "ctxforge_echo"), include_path=(tasks,), device="cpu")
    return run_external(extended, options=options, source=bundled_model())


@contextmanager
def seen_by(model: Any) -> Iterator[list[torch.Tensor]]:
    """Every tensor of token ids that goes into the model inside the block."""
    found: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone()))
    try:
        yield found
    finally:
        hook.remove()


def choices_by_hand(model: Any, document: dict[str, Any]) -> list[float]:
    """Log-probability of each choice after the story and a space, one token a byte."""
    found = []
    for choice in document["choices"]:
        context, answer = list(document["story"].encode()), list(f" {choice}".encode())
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0].double().log_softmax(-1)
        found.append(sum(logits[len(context) + n - 1, token].item() for n, token in enumerate(answer)))
    return found


@engine
def test_multiple_choice_is_what_transformers_gives(report: ExternalReport, extended: Path) -> None:
    documents = json.loads((TASKS / "choice.json").read_text())
    scores = {each.metric: each for each in report.scores if each.task == "ctxforge_choice"}
    for model, limit, name in ((bundled.load(extended), 2048, "result"), (bundled.plain(), 512, "source")):
        right, normed, kept = 0, 0, 0
        for document in documents:
            if len(document["story"]) + 1 + max(map(len, document["choices"])) - 1 > limit:
                continue
            values = choices_by_hand(model, document)
            kept += 1
            right += max(range(3), key=values.__getitem__) == document["gold"]
            by_character = [v / len(choice) for v, choice in zip(values, document["choices"], strict=True)]
            normed += max(range(3), key=by_character.__getitem__) == document["gold"]
        acc, acc_norm = getattr(scores["acc"], name), getattr(scores["acc_norm"], name)
        assert (acc.value, acc.units) == (pytest.approx(right / kept), kept)
        assert (acc_norm.value, acc_norm.units) == (pytest.approx(normed / kept), kept)
        assert 0 < right < kept
    # 14 documents: the last fits neither model, the one before it the result alone.
    acc = scores["acc"]
    assert (acc.documents, acc.left_out, acc.source_left_out, acc.paired) == (14, 1, 2, 12)
    assert acc.version == "1.5"


@engine
def test_too_long_documents_are_reported_not_cut(report: ExternalReport) -> None:
    (echo,) = [each for each in report.scores if each.task == "ctxforge_echo"]
    assert (echo.documents, echo.left_out, echo.source_left_out, echo.paired) == (11, 1, 2, 9)
    assert echo.result is not None
    assert echo.result.units == 10
    assert echo.result.value > 0
    assert echo.difference is not None
    assert echo.difference.bounds is not None
    texts = [row["text"] for row in json.loads((TASKS / "echo.json").read_text())]
    assert echo.longest == max(len(text) for text in texts if len(text) + 12 <= 2048) + 12
    left = {(each.model, each.document): each for each in report.left_out if each.task == "ctxforge_echo"}
    assert set(left) == {("result", 10), ("source", 9), ("source", 10)}
    assert (left["result", 10].tokens, left["result", 10].generated) == (len(texts[10]), 12)
    assert (report.limit, report.source_limit) == (2048, 512)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["scores"][0]["task"] == "ctxforge_choice"


@engine
def test_stock_lm_eval_cuts_where_we_leave_out(tasks: str) -> None:
    """The negative control: the same model, task and max_length with lm-eval's own class."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    model, tokenizer = bundled.plain(), AutoTokenizer.from_pretrained(bundled_model())
    built = TaskManager(include_path=tasks, include_defaults=False).load(["ctxforge_echo"])
    prompts = [list(row["text"].encode()) for row in json.loads((TASKS / "echo.json").read_text())]
    with seen_by(model) as stock:
        lm_eval.evaluate(HFLM(model, tokenizer=tokenizer, max_length=512), built, bootstrap_iters=0)
    started = [ids[0].tolist() for ids in stock if ids.shape[1] > 1]
    assert sum(ids not in prompts for ids in started) == 2
    assert all(ids == next(p for p in prompts if p[-500:] == ids)[-500:] for ids in started if ids not in prompts)
    options = ExternalOptions(tasks=("ctxforge_echo",), include_path=(tasks,), max_length=512, device="cpu")
    with seen_by(model) as ours:
        found = run_external(bundled_model(), options=options, model=model, tokenizer=tokenizer)
    started = [ids[0].tolist() for ids in ours if ids.shape[1] > 1]
    assert len(started) == 9
    assert all(ids in prompts and len(ids) + 12 <= 512 for ids in started)
    assert [each.document for each in found.left_out] == [9, 10]
    # A batch is padded to its longest prompt, which must fit too.
    batched = run_external(
        bundled_model(), options=dataclasses.replace(options, batch_size=4), model=model, tokenizer=tokenizer
    )
    assert batched.scores[0].left_out == 2


@engine
def test_refusing_and_missing(extended: Path, tasks: str) -> None:
    pytest.importorskip("lm_eval")
    base = ExternalOptions(tasks=("ctxforge_echo",), include_path=(tasks,), device="cpu", too_long="refuse")
    with pytest.raises(UsageError, match=r"document 10 of ctxforge_echo has 2490 tokens .* sees 2048"):
        run_external(extended, options=base)
    with pytest.raises(UsageError, match="perplexity in windows"):
        run_external(extended, options=dataclasses.replace(base, tasks=("ctxforge_rolling",)))
    missing = dataclasses.replace(base, tasks=("ctxforge_missing",))
    with pytest.raises(ResourceError, match="data of ctxforge_missing") as error:
        run_external(extended, options=missing)
    assert "HF_HOME" in error.value.remedy
    (not_run,) = run_external(extended, options=dataclasses.replace(missing, skip_missing=True)).not_run
    assert not_run.task == "ctxforge_missing"
    with pytest.raises(UsageError, match="does not fit the result, which sees 2048"):
        run_external(extended, options=ExternalOptions(tasks=("niah_single_1",), lengths=(4096,), device="cpu"))


@engine
def test_a_package_that_ruler_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    assert release(require_lm_eval(["short"])) >= (0, 4, 13)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wonderwords" else found(name))
    with pytest.raises(ResourceError, match="RULER needs wonderwords") as error:
        require_lm_eval(["ruler"])
    assert "ctxforge-llm[eval]" in error.value.remedy


@engine
def test_a_data_set_of_the_hub_without_a_hub(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    code = """
from pathlib import Path
from ctxforge.errors import ResourceError
from ctxforge.sources import bundled_model
from ctxforge.verification.external import external_options, run_external
try:
    run_external(bundled_model(), options=external_options(["arc_easy"], [], device="cpu"))
except ResourceError as error:
    print(error.cause, "|", error.remedy)
tasks = ("niah_single_2", "niah_multivalue")
found = run_external(bundled_model(), options=external_options(tasks, [200, 400], skip_missing=True, device="cpu"))
print([(each.task, each.length, "essays" in each.reason) for each in found.not_run], found.scores)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the data of arc_easy can't be had" in done.stdout
    assert "allenai/ai2_arc" in done.stdout
    assert "include_path" in done.stdout
    absent = [(task, length, True) for task in ("niah_single_2", "niah_multivalue") for length in (200, 400)]
    assert done.stdout.splitlines()[1] == f"{absent} ()"


@engine
def test_ruler_prompts_fit_with_what_lm_eval_adds(extended: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("wonderwords")
    from transformers import AutoTokenizer

    from ctxforge.verification.external.build import build_jobs

    tokenizer = AutoTokenizer.from_pretrained(extended)
    options = ExternalOptions(tasks=("niah_single_1", "ruler_fwe", "ruler_vt"), lengths=(1810,))

    def longest(limit: int) -> dict[str, int]:
        jobs, not_run = build_jobs(options, extended, tokenizer, (limit,))
        # Its bare except would spin for ever on a byte tokenizer.
        assert [(each.task, "worked example" in each.reason) for each in not_run] == [("ruler_vt", True)]
        generated = {"niah_single_1": 128, "ruler_fwe": 50}
        return {
            job.name: max(
                len(f"{row['input']} {row['gen_prefix']}".encode()) + generated[job.name]
                for row in job.task.dataset["test"]
            )
            for job in jobs
        }

    assert all(tokens <= 1810 for tokens in longest(1810).values())
    # The negative control: asked for 1810 as it is, lm-eval's prompts overflow max_length = 1810 and would be cut.
    assert all(tokens > 1810 for tokens in longest(10_000).values())


@engine
def test_ruler_runs_on_the_result_and_says_what_it_is(extended: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("wonderwords")
    options = ExternalOptions(tasks=("niah_single_1",), lengths=(1024,), limit=2, device="cpu")
    found = run_external(extended, options=options, source=bundled_model())
    (each,) = found.scores
    assert (each.task, each.metric, each.length, each.asked) == ("niah_single_1", "string_match_all", 1024, 1024)
    assert each.documents == 2
    assert each.source is None
    assert each.result is not None
    assert not math.isnan(each.result.value)
    assert 900 < each.longest <= 2048
