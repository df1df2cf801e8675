"""Units of a measurement: planned, shared out, kept, and put together again to the same numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ctxforge
from ctxforge.errors import InterruptedRunError, ResourceError, UsageError
from ctxforge.sources import bundled_model, bundled_text
from ctxforge.verification import VerifySettings, evaluate_model, prepare_text, verify
from ctxforge.verification.far_context import far_context
from ctxforge.verification.journal import Journal, journal_folder, journals
from ctxforge.verification.load import load_model, load_tokenizer, memory_errors
from ctxforge.verification.long_use import LongPPLSettings, longppl, self_long_gain
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.protocols import ProtocolSettings, run_protocol
from ctxforge.verification.units import Scope, Unit, plan_units, shared_out
from ctxforge.verification.worker import Worker

SETTINGS = VerifySettings(device="cpu", needles=3, seeds=2, buckets=4, documents=2, short_windows=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(bundled_model(), SETTINGS, "cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(bundled_model(), SETTINGS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


units_lists = st.lists(
    st.builds(Unit, st.sampled_from(["window", "haystack", "task"]), st.integers(0, 50), tokens=st.integers(0, 10**6)),
    unique_by=lambda unit: unit.key,
)


@given(units_lists, st.integers(1, 5))
def test_every_unit_goes_to_one_process(units: list[Unit], processes: int) -> None:
    shares = shared_out(units, processes)
    assert len(shares) == processes
    assert sorted(unit.key for share in shares for unit in share) == sorted(unit.key for unit in units)
    loads = [sum(max(1, unit.tokens) for unit in share) for share in shares]
    # Longest first: no process has more than the others by more than its last, smallest unit.
    smallest = [min((max(1, unit.tokens) for unit in share), default=0) for share in shares]
    assert all(load - small <= min(loads) for load, small in zip(loads, smallest, strict=True))


def test_the_source_needs_less() -> None:
    settings = dataclasses.replace(SETTINGS, protocols=("yarn",), tasks=("passkey",), far_context=True)

    def keys(scope: Scope) -> set[str]:
        planned = plan_units(settings, scope, 512, 2048, short_windows=3, prefix_invariant=True)
        assert len({unit.key for unit in planned}) == len(planned)
        return {unit.key for unit in planned}

    everything = keys(Scope(truncated=True, far_context=True))
    assert {"window-2048-0", "short-512-2", "truncated-2048-1", "haystack-2048-1", "protocol-yarn-2048-0"} <= everything
    assert "short-512-0" not in everything  # read off the first long window
    assert {"task-passkey-512-1", "task-passkey-2048-0", "cache-0-0"} <= everything
    source = keys(Scope(curve=False, retrieval_up_to=512, protocols=False))
    assert source == {
        *("short-512-0", "short-512-1", "short-512-2", "haystack-512-0", "haystack-512-1", "cache-0-0"),
        *("task-passkey-512-0", "task-passkey-512-1"),
    }


def test_an_interrupted_measurement_ends_with_the_same_numbers(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {
        "text": prepare_text(tokenizer, bundled_text(), 1024, SETTINGS),
        "trained_length": 512,
        "target_length": 1024,
        "settings": SETTINGS,
    }
    whole = evaluate_model(model, tokenizer, **common)
    journal = Journal(tmp_path / "journal")
    compute, done = Worker.compute, []

    def stopping(self: Worker, unit: Unit, tick: Any = None) -> dict[str, Any]:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(unit.key)
        return compute(self, unit, tick)

    monkeypatch.setattr(Worker, "compute", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(model, tokenizer, journal=journal, **common)
    assert set(journal.read()) == set(done)
    assert len(done) == 4

    def noting(self: Worker, unit: Unit, tick: Any = None) -> dict[str, Any]:
        done.append(unit.key)
        return compute(self, unit, tick)

    monkeypatch.setattr(Worker, "compute", noting)
    resumed = evaluate_model(model, tokenizer, journal=journal, **common)
    assert len(done) == len(set(done))  # nothing twice
    assert dataclasses.asdict(resumed) == dataclasses.asdict(whole)


def test_a_journal_belongs_to_one_model_text_and_setting(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    fixed: dict[str, Any] = {"device": "cpu", "versions": {"torch": "2"}}

    def folder(settings: VerifySettings = SETTINGS, text: str = "a", variant: str = "") -> Path:
        return journal_folder(tmp_path, text, settings, (512, 1024), variant=variant, **fixed)

    first = folder()
    assert first.parent == journals() == cache / "verify"
    assert folder() == first
    others = {folder(text="b"), folder(variant="pi"), folder(dataclasses.replace(SETTINGS, buckets=5))}
    (tmp_path / "config.json").write_text('{"rope_theta": 1}')
    others.add(folder())
    assert len({first, *others}) == 5
    assert folder(dataclasses.replace(SETTINGS, trust_remote_code=True)) == folder()


def test_what_is_not_whole_counts_for_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write("window-0", {"losses": [1.5, math.nan]})
    (tmp_path / "journal" / "window-1.json").write_text('{"losses": [1.')
    (tmp_path / "journal" / "window-2.json").write_text("[]")
    found = journal.read()
    assert list(found) == ["window-0"]
    assert found["window-0"]["losses"][0] == 1.5
    assert math.isnan(found["window-0"]["losses"][1])
    unwritable = Journal(Path(os.devnull) / "journal")
    unwritable.write("window-0", {})
    assert unwritable.read() == {}


def test_ctrl_c_says_what_is_kept_and_the_second_run_uses_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any], tmp_path: Path
) -> None:
    out = ctxforge.extend("bundled", method="yarn", to="2x", out=tmp_path / "out").out
    arguments: dict[str, Any] = {
        "source_dir": bundled_model(),
        "text": bundled_text(),
        "trained_length": 512,
        "target_length": 1024,
        "settings": SETTINGS,
    }
    compute, count = Worker.compute, [0]

    def stopping(self: Worker, unit: Unit, tick: Any = None) -> dict[str, Any]:
        count[0] += 1
        if count[0] == 10:
            raise KeyboardInterrupt
        return compute(self, unit, tick)

    monkeypatch.setattr(Worker, "compute", stopping)
    with pytest.raises(InterruptedRunError, match="9 finished parts") as raised:
        verify(out, **arguments)
    assert raised.value.exit_code == 130
    assert "--fresh" in raised.value.remedy
    monkeypatch.setattr(Worker, "compute", lambda self, unit, tick=None: count.append(1) or compute(self, unit, tick))
    first = len(count)
    report = verify(out, **arguments)
    resumed = len(count) - first
    # A finished measurement leaves nothing behind: the next one computes everything again.
    assert not list((cache / "verify").iterdir())
    again = verify(out, **arguments)
    assert len(count) - first - resumed == resumed + 9
    assert report.to_dict() == again.to_dict()


def test_two_processes_measure_what_one_does(cache: Path, tmp_path: Path) -> None:
    out = ctxforge.extend("bundled", method="yarn", to="2x", out=tmp_path / "out").out
    command = ["-m", "ctxforge", "verify", str(out), "--source", "bundled", "--device", "cpu", "--needles", "3"]
    command += ["--seeds", "2", "--windows", "2", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CTXFORGE_NO_PROGRESS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    alone = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    both = subprocess.run(
        [sys.executable, *launcher, *command[1:]], capture_output=True, text=True, env=environment, check=False
    )
    one, two = (json.loads(ran.stdout)["report"] for ran in (alone, both))
    assert (one["protocol"].pop("processes"), two["protocol"].pop("processes")) == (1, 2)
    assert one["judgement"] == two["judgement"]
    assert one["result"]["answers"] == two["result"]["answers"]
    assert one == two


def test_far_context_equals_the_functions_on_models(model: Any, tokenizer: Any) -> None:
    settings = dataclasses.replace(SETTINGS, far_context=True, retrieval=False)
    tokens = prepare_text(tokenizer, bundled_text(), 1024, settings)
    common: dict[str, Any] = {"text": tokens, "trained_length": 512, "target_length": 1024, "settings": settings}
    found = evaluate_model(model, tokenizer, scope=Scope(far_context=True), **common).far_context
    assert found is not None
    far = LongPPLSettings.scaled(512)
    documents = [tokens.window(i, 1024)[len(tokens.prefix) :] for i in range(2)]
    runner = OnePass(model, longest=1024)
    gain = self_long_gain(runner, documents, 512, context=far.context, refresh=far.refresh, prefix=tokens.prefix)
    ours = longppl(runner, documents, far, prefix=tokens.prefix)
    np.testing.assert_allclose(found.gains, gain.values, atol=1e-5)
    assert found.gain == pytest.approx(gain.value, abs=1e-5)
    assert sum(found.key_counts) == ours.key_tokens > 0
    assert found.longppl == pytest.approx(ours.longppl, rel=1e-5)
    assert evaluate_model(model, tokenizer, scope=Scope(), **common).far_context is None


def test_far_context_of_hand_made_losses() -> None:
    settings = LongPPLSettings(context=2, refresh=1, gain=2.0, ceiling=2.0)
    full = [np.array([1.0, 0.5, 3.0, 1.0], np.float32)]
    short = [np.array([2.0, 3.0, 9.0, 1.0], np.float32)]
    found = far_context(full, short, 4, settings)
    # From token 4 on: (9 + 1) / 2 - (3 + 1) / 2. Key: the second alone, the third costs too much with the full context.
    assert found.gain == pytest.approx(3.0)
    assert found.key_counts == (1,)
    assert found.longppl == pytest.approx(math.exp(0.5))
    assert found.tokens == 4


def test_tasks_and_protocols_are_measured_with_the_rest(model: Any, tokenizer: Any) -> None:
    settings = dataclasses.replace(
        SETTINGS, tasks=("passkey", "variable-tracking"), task_depths=2, task_seeds=2, protocols=("yarn", "pi")
    )
    tokens = prepare_text(tokenizer, bundled_text(), 1024, settings)
    found = evaluate_model(model, tokenizer, text=tokens, trained_length=512, target_length=1024, settings=settings)
    asked = {(score.task, score.length, score.seed, score.depth) for score in found.tasks}
    assert {(name, length, seed) for name, length, seed, _ in asked} == {
        (name, length, seed) for name in settings.tasks for length in (512, 1024) for seed in (0, 1)
    }
    documents = [tokens.body[i * 1024 : (i + 1) * 1024] for i in range(2)]
    chosen = ProtocolSettings(bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, prefix=tokens.prefix)
    theirs = run_protocol("yarn", OnePass(model, longest=1024), documents, (256, 512, 1024), chosen)
    ours = [result for result in found.protocols if result.protocol == "yarn"]
    assert [result.length for result in ours] == [256, 512, 1024]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.nll == pytest.approx(other.nll, abs=1e-5)
    assert [result.length for result in found.protocols if result.protocol == "pi"] == [1024]


def test_tasks_that_do_not_fit(tmp_path: Path, cache: Path) -> None:
    common: dict[str, Any] = {
        "source_dir": None,
        "text": bundled_text(),
        "trained_length": 64,
        "target_length": 128,
    }
    settings = dataclasses.replace(SETTINGS, tasks=("common-words", "passkey"), documents=1, retrieval=False)
    with pytest.raises(UsageError, match="common-words"):
        verify(bundled_model(), settings=settings, **common)
    report = verify(bundled_model(), settings=dataclasses.replace(settings, optional_tasks=True), **common)
    assert any("common-words" in note for note in report.notes)


def test_out_of_memory_says_what_fits() -> None:
    with pytest.raises(ResourceError) as raised, memory_errors(2**20, SETTINGS, bundled_model(), "cpu"):
        raise MemoryError
    assert "tokens in float32" in raised.value.remedy
    assert "tokens in bfloat16" in raised.value.remedy
