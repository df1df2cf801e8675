"""Verdicts on engines' answers, and what becomes of engines that are missing, crash or hang."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest

from ctxforge.engines.run import RUNNERS, run_engines
from ctxforge.engines.run.compare import compare
from ctxforge.engines.run.readings import DEFAULT_BASE, PLANNED, UNSCALED, readings
from ctxforge.engines.run.table import find_runner
from ctxforge.engines.run.worker import Answer, WorkerError, ask
from ctxforge.errors import CheckpointError, CtxforgeError, UsageError
from ctxforge.rope import understand

BUNDLED = Path(__file__).parents[2] / "ctxforge" / "bundled" / "model"
VLLM = RUNNERS["vllm"]
PLAN = {1: -1.0, 2: -2.0, 3: -0.5}
REFERENCE = Answer(
    "5", PLAN, readings={PLANNED: PLAN, UNSCALED: {1: -1.0, 2: -2.5, 3: -0.5}, "other": {1: -9.0, 2: -2.0, 3: -0.5}}
)  # fmt: skip


def shifted(by: float) -> Answer:
    return Answer("vllm 1", {**PLAN, 2: -2.0 + by})


@pytest.mark.parametrize(
    ("by", "status", "says"),
    [
        (0.0, "agrees", ""),
        (VLLM.tolerance * 0.9, "agrees", ""),
        (VLLM.tolerance * 1.1, "differs", "something else"),
        (-0.499, "differs", UNSCALED),
        (-0.4, "differs", "something else"),
        (math.nan, "failed", "no finite"),
        (-math.inf, "failed", "no finite"),
    ],
)
def test_verdict(by: float, status: str, says: str) -> None:
    result = compare(VLLM, shifted(by), REFERENCE, None)
    assert result.status == status
    assert says in result.detail
    assert result.control_difference == pytest.approx(0.5)
    assert result.tokens == 3
    if math.isfinite(by):
        assert result.max_difference == pytest.approx(abs(by), abs=1e-12)
        assert result.mean_difference == pytest.approx(abs(by) / 3, abs=1e-12)


def test_an_agreement_that_shows_nothing_is_no_agreement() -> None:
    near = Answer("5", PLAN, readings={PLANNED: PLAN, UNSCALED: {**PLAN, 2: -2.0 - 5 * VLLM.tolerance}})
    assert compare(VLLM, shifted(0.0), near, None).status == "can't tell"
    assert compare(VLLM, shifted(0.1), near, None).status == "differs"


def test_only_the_positions_that_an_engine_reports_are_compared() -> None:
    result = compare(VLLM, Answer("1", {3: -0.5}), REFERENCE, None)
    assert (result.tokens, result.status, result.control_difference) == (1, "can't tell", 0.0)


def test_a_longer_served_length_is_named() -> None:
    answer = Answer("1", PLAN, facts={"max_model_len": 8192})
    assert "accepts 8192 tokens, the config means 2048" in compare(VLLM, answer, REFERENCE, 2048).detail
    assert compare(VLLM, answer, REFERENCE, 8192).detail == ""


def config(**changes: object) -> dict[str, object]:
    return {**json.loads((BUNDLED / "config.json").read_text()), "rope_parameters": None, **changes}


def test_readings_of_yarn() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attention_factor": 1.25}
    found = readings(understand(config(rope_scaling=scaling, rope_theta=5e5, max_position_embeddings=2048)))
    assert set(found) == {
        PLANNED,
        UNSCALED,
        DEFAULT_BASE,
        "the temperature ignored",
        "yarn's default temperature",
        "longrope's default temperature",
    }
    frequencies, temperature = found[PLANNED][""]
    assert temperature == 1.25
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(5e5 ** (-62 / 64) / 4)
    assert found[UNSCALED][""][0][-1] == pytest.approx(5e5 ** (-62 / 64))
    assert found[DEFAULT_BASE][""][0][-1] == pytest.approx(1e4 ** (-62 / 64))
    assert found["yarn's default temperature"][""] == (frequencies, pytest.approx(0.1 * math.log(4) + 1))
    assert found["longrope's default temperature"][""][1] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(512)))


def test_readings_leave_out_what_is_no_misreading() -> None:
    assert set(readings(understand(config(rope_theta=1e4)))) == {PLANNED}
    assert set(readings(understand(config(rope_theta=2e4)))) == {PLANNED, DEFAULT_BASE}
    dynamic = {"rope_type": "dynamic", "factor": 4.0}
    assert set(readings(understand(config(rope_scaling=dynamic)))) == {UNSCALED}


@pytest.mark.parametrize(("spelt", "name"), [("vLLM", "vllm"), ("llama_cpp", "llama.cpp"), ("mlx", "mlx-lm")])
def test_names(spelt: str, name: str) -> None:
    assert find_runner(spelt).name == name
    assert RUNNERS["llama.cpp"].variable == "CTXFORGE_ENGINE_LLAMA_CPP_PYTHON"


def test_bad_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no engine 'gpt4all'"):
        run_engines(BUNDLED, ("gpt4all",))
    with pytest.raises(UsageError):
        run_engines(BUNDLED, ("vllm",), tokens=1)
    with pytest.raises(CheckpointError):
        run_engines(tmp_path, ("vllm",))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError):
        run_engines(tmp_path, ("vllm",))
    monkeypatch.setenv(VLLM.variable, str(tmp_path / "none"))
    with pytest.raises(UsageError, match=VLLM.variable):
        run_engines(BUNDLED, ("vllm",))


def test_engines_that_cannot_answer_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in RUNNERS.values():
        monkeypatch.delenv(row.variable, raising=False)
    if shutil.which("false") is None or os.name != "posix":
        pytest.skip("needs a POSIX system")
    [missing] = run_engines(BUNDLED, ("transformers-4",))
    assert missing.status == "not installed"
    assert "CTXFORGE_ENGINE_TRANSFORMERS_4_PYTHON" in missing.detail
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\necho one >&2\necho '  Illegal   instruction' >&2\nkill -ILL $$\n")
    crash.chmod(crash.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(VLLM.variable, str(crash))
    monkeypatch.setenv(RUNNERS["mlx-lm"].variable, sys.executable)
    monkeypatch.setenv(RUNNERS["llama.cpp"].variable, "false")
    steps: list[tuple[str, int, int]] = []
    found = run_engines(BUNDLED, ("vllm", "mlx-lm", "llama.cpp"), tokens=8, progress=lambda *step: steps.append(step))
    assert [result.status for result in found] == ["failed"] * 3
    assert found[0].detail == "killed by signal 4: Illegal instruction"
    assert found[1].detail.startswith("ModuleNotFoundError: No module named 'mlx'")
    assert found[2].detail == "exit code 1: it said nothing"
    assert not any("\n" in result.detail for result in found)
    assert steps == [("reference", 0, 4), ("vllm", 1, 4), ("mlx-lm", 2, 4), ("llama.cpp", 3, 4), ("done", 4, 4)]


def test_an_engine_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\n(sleep 3; touch {tmp_path}/still-alive) &\nsleep 60\n")
    hangs.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"no answer within 0\.5 s"):
        ask(str(hangs), "run_vllm", {}, seconds=0.5)
    assert time.monotonic() - start < 3
    time.sleep(max(0.0, 3.5 - (time.monotonic() - start)))
    assert not (tmp_path / "still-alive").exists()


def test_code_of_the_checkpoint_never_runs(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    loaded = {**json.loads(path.read_text()), "model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    path.write_text(json.dumps(loaded))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(CtxforgeError):
        run_engines(tmp_path / "model", ("transformers",), tokens=8)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_with_its_own_code_is_not_judged(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    loaded = {**json.loads(path.read_text()), "ctxforge": {"system": "xpos", "parameters": {}}}
    path.write_text(json.dumps(loaded))
    [result] = run_engines(tmp_path / "model", ("transformers",), tokens=8)
    assert result.status == "can't tell"
    assert "xpos" in result.detail


def test_the_readings_are_what_they_are_called(tmp_path: Path) -> None:
    """Each table set in a loaded model gives what transformers gives for a config that says so."""
    ctxforge = pytest.importorskip("ctxforge")
    folder = ctxforge.extend(BUNDLED, method="yarn", to="4x", out=tmp_path / "yarn").out
    geometry = understand(json.loads((folder / "config.json").read_text()))
    ids = list((BUNDLED.parent / "text.txt").read_bytes()[:600])
    found = ask(
        sys.executable,
        "run_transformers",
        {"folder": str(folder), "ids": ids, "readings": readings(geometry)},
        seconds=300,
    )
    plain = ask(sys.executable, "run_transformers", {"folder": str(BUNDLED), "ids": ids}, seconds=300)

    def apart(one: dict[int, float], other: dict[int, float]) -> float:
        return max(abs(one[k] - other[k]) for k in one)

    assert apart(dict(found.readings[PLANNED]), dict(found.logprobs)) < 1e-3
    assert apart(dict(found.readings[UNSCALED]), dict(plain.logprobs)) < 1e-3
    assert apart(dict(found.readings[UNSCALED]), dict(found.logprobs)) > 1
    assert apart(dict(found.readings["the temperature ignored"]), dict(found.logprobs)) > 0.1
