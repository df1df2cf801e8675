"""Processes on this machine: what they may have, and how their ends are told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ctxforge.batch.executors import LocalExecutor
from ctxforge.batch.sizes import parse_bytes
from ctxforge.batch.specs import JobSpec, ResourceSpec
from ctxforge.batch.task import Task, run_elsewhere
from ctxforge.errors import ResourceError, UsageError
from ctxforge.recipe import MethodChoice
from tests.batch.files import source


def task(folder: Path, name: str) -> Task:
    spec = JobSpec(source=str(folder / "large"), method=MethodChoice(name="yarn", temperature=1.25), to="8x")
    return Task(name=name, spec=spec, out=str(folder / name), stages=("convert",), folder=str(folder))


def test_workers_that_are_killed_and_interrupted(tmp_path: Path) -> None:
    source(tmp_path / "large", shards=3, hidden=320)
    executor = LocalExecutor(3, logs=tmp_path / "logs")
    handles = [executor.submit(task(tmp_path, name)) for name in ("first", "second", "third")]
    latest = time.monotonic() + 60
    while not (found := list(tmp_path.glob(".first.ctxforge-*"))) and time.monotonic() < latest:
        time.sleep(0.001)
    os.kill(int(found[0].name.split("-")[1]), signal.SIGKILL)
    dead = executor.wait(handles[:1], 60)[0].result()
    assert dead.status == "failed"
    assert dead.failure is not None
    assert "the job's process died by signal 9" in dead.failure.cause
    assert dead.failure.exit_code == 5
    executor.cancel(handles[1:])
    assert {handle.result().status for handle in handles[1:]} <= {"interrupted", "done"}
    assert [path.name for path in tmp_path.glob(".second.*")] == []
    executor.close()
    assert not (tmp_path / "logs").exists()
    assert executor.submit(task(tmp_path, "first")).result().status == "done"
    assert [path.name for path in tmp_path.glob(".first.*")] == []


def test_what_fits_beside_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = LocalExecutor(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    none, one, two = ResourceSpec(), ResourceSpec(gpus=1), ResourceSpec(gpus=2)
    assert executor.resources(none, [none, none])
    assert not executor.resources(none, [none, none, none])
    assert executor.resources(one, [one])
    assert not executor.resources(two, [one])
    assert not executor.resources(ResourceSpec(memory=whole // 2 + 1), [ResourceSpec(memory=whole // 2 + 1)])
    with pytest.raises(ResourceError, match="asks for 3 GPUs, and this machine has 2"):
        executor.resources(ResourceSpec(gpus=3), [])
    with pytest.raises(ResourceError, match="of memory, and this machine has"):
        executor.resources(ResourceSpec(memory="900TB"), [])


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("512MiB", 2**29), ("1.5 k", 1500), (7, 7), ("2ti", 2**41)]
)
def test_amounts_of_memory(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "8 apples", "iB", "1e3"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


def test_a_node_without_the_working_folder_says_so(tmp_path: Path) -> None:
    lost = Task(name="x", spec=task(tmp_path, "x").spec, out="x", stages=("convert",), folder=str(tmp_path / "gone"))
    result = run_elsewhere(lost)
    assert result.failure is not None
    assert "does not see the working folder" in result.failure.cause
