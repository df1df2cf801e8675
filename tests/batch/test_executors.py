"""Ray and Slurm's submitit: the same outputs as on one machine, a worker killed in the middle, resources refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from ctxforge.batch import BatchOptions, prepare, run
from ctxforge.batch.executors import Executor
from ctxforge.batch.executors.ray_cluster import RayExecutor
from ctxforge.batch.executors.slurm import SlurmExecutor
from ctxforge.batch.specs import ResourceSpec
from ctxforge.batch.task import Task
from ctxforge.errors import UsageError
from tests.batch.files import ran, source, statuses, trees, write

BATCH = """
version: 1
output: out
defaults: {to: 8x, resources: {cpus: 0.5, memory: 100MB}}
jobs:
  - {name: first, source: large, method: {name: yarn, temperature: 1.25}}
  - {name: twin, source: large, method: {name: yarn, temperature: 1.25}}
matrix: {models: [large], methods: [pi, ntk], lengths: [4x, 8x]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source(tmp_path / "large", shards=3, hidden=320)
    write(tmp_path / "b.yaml", BATCH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, object]]:
    import ray

    start = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80_000_000}
    ray.init(**start)
    yield start
    ray.shutdown()


def local(folder: Path) -> dict[str, dict[str, bytes]]:
    assert ran(folder / "b.yaml", output=Path("alone")).exit_code == 0
    return trees(folder / "alone")


@pytest.mark.executor
def test_ray_gathers_what_one_machine_would_make(folder: Path, cluster: object) -> None:
    result = ran(folder / "b.yaml", RayExecutor())
    assert set(statuses(result).values()) == {"done"}
    assert trees(folder / "out") == local(folder)
    journal = [json.loads(line) for line in result.journal.read_text().splitlines()]
    assert sum(event["event"] == "end" for event in journal) == 6
    assert set(statuses(ran(folder / "b.yaml", RayExecutor(), resume=True)).values()) == {"skipped"}


def killer(folder: Path, killed: list[int]) -> None:
    """Kill the first process that writes below `folder`, once."""
    latest = time.monotonic() + 120
    while not killed and time.monotonic() < latest:
        for path in folder.glob(".first.ctxforge-*"):
            number = int(path.name.split("-")[1])
            if number != os.getpid():
                os.kill(number, signal.SIGKILL)
                killed.append(number)
                return
        time.sleep(0.0005)


@pytest.mark.executor
def test_a_ray_worker_that_dies_is_replaced(folder: Path, cluster: object) -> None:
    killed: list[int] = []
    (folder / "out").mkdir()
    thread = Thread(target=killer, args=(folder / "out", killed))
    thread.start()
    result = ran(folder / "b.yaml", RayExecutor())
    thread.join()
    assert len(killed) == 1
    assert set(statuses(result).values()) == {"done"}
    assert trees(folder / "out") == local(folder)
    assert [path.name for path in (folder / "out").iterdir() if path.name.startswith(".")] == []


@pytest.mark.executor
def test_what_no_ray_node_has_is_refused(folder: Path, cluster: object) -> None:
    text = BATCH + "    \n"
    write(folder / "b.yaml", text.replace("cpus: 0.5", "cpus: 0.5, gpus: 3"))
    result = ran(folder / "b.yaml", RayExecutor())
    assert result.exit_code == 5
    failure = next(one.failure for one in result.results if one.status == "failed")
    assert failure is not None
    assert "no node of the Ray cluster has 0.5 CPU, 3 GPU" in failure.cause


class Interrupting:
    """An executor whose user presses Ctrl-C when the first task was sent."""

    elsewhere = True

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.submit, self.cancel = inner.submit, inner.cancel
        self.resources, self.close = inner.resources, inner.close

    def wait(self, handles: list[object], seconds: float) -> list[object]:
        del handles, seconds
        raise KeyboardInterrupt


@pytest.mark.executor
@pytest.mark.parametrize("kind", ["ray", "submitit"])
def test_an_interrupt_takes_tasks_back(folder: Path, kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "ray":
        request.getfixturevalue("cluster")
    made = RayExecutor() if kind == "ray" else SlurmExecutor(folder / "logs", 3, "local")
    result = ran(folder / "b.yaml", Interrupting(made))  # type: ignore[arg-type]
    assert result.exit_code == 130
    assert set(statuses(result).values()) <= {"interrupted", "done", "not run"}
    assert set(statuses(ran(folder / "b.yaml", resume=True)).values()) <= {"done", "skipped"}
    assert trees(folder / "out") == local(folder)


@pytest.mark.executor
@pytest.mark.parametrize("cluster_name", ["debug", "local"])
def test_submitit_gathers_what_one_machine_would_make(folder: Path, cluster_name: str) -> None:
    executor = SlurmExecutor(folder / "logs", 2, cluster_name)
    result = ran(folder / "b.yaml", executor)
    assert set(statuses(result).values()) == {"done"}, [one.failure for one in result.results]
    assert trees(folder / "out") == local(folder)


@pytest.mark.executor
def test_a_submitit_job_that_dies_is_a_failure_and_resumes(folder: Path) -> None:
    killed: list[int] = []
    (folder / "out").mkdir()
    thread = Thread(target=killer, args=(folder / "out", killed))
    thread.start()
    result = ran(folder / "b.yaml", SlurmExecutor(folder / "logs", 2, "local"), keep_going=True)
    thread.join()
    assert len(killed) == 1
    found = statuses(result)
    assert found["first"] == "failed"
    failure = next(one.failure for one in result.results if one.name == "first")
    assert failure is not None
    assert "the Slurm job" in failure.cause
    assert result.exit_code == 5
    assert set(statuses(ran(folder / "b.yaml", resume=True)).values()) <= {"done", "skipped"}
    assert trees(folder / "out") == local(folder)


@pytest.mark.executor
def test_what_slurm_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch script that submitit makes, caught by a stand-in for sbatch."""
    programs = folder / "programs"
    for name, text in (("sbatch", f'cp "$1" {folder / "sent.sh"}\necho Submitted batch job 7'), ("srun", "true")):
        write(programs / name, f"#!/bin/sh\n{text}\n").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    text = BATCH.replace("memory: 100MB", "memory: 3GB, gpus: 1, minutes: 30, slurm: {partition: long}")
    planned = prepare(write(folder / "b.yaml", text), BatchOptions()).jobs[0]
    task = Task(name="first", spec=planned.job.spec, out=str(planned.out), stages=("convert",))
    SlurmExecutor(folder / "logs").submit(task)
    made = (folder / "sent.sh").read_text()
    for line in (
        "partition=long",
        "mem=3GB",
        "gpus-per-node=1",
        "time=30",
        "job-name=ctxforge-first",
        "cpus-per-task=1",
    ):
        assert f"#SBATCH --{line}\n" in made, made
    wrong = replace(task, spec=replace(task.spec, resources=ResourceSpec(slurm={"partion": "long"})))
    with pytest.raises(UsageError, match=r"resources\.slurm: .*partion"):
        SlurmExecutor(folder / "logs").submit(wrong)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_a_missing_extra_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        RayExecutor()
    assert caught.value.remedy == "pip install 'ctxforge-llm[ray]'"
    if importlib.util.find_spec("submitit") is None:
        with pytest.raises(UsageError) as caught:
            SlurmExecutor(Path("x"))
        assert caught.value.remedy == "pip install 'ctxforge-llm[slurm]'"


@pytest.mark.executor
def test_no_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch was not found"):
        SlurmExecutor(tmp_path)


@pytest.mark.executor
def test_heavy_jobs_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated and verified, in processes of their own; gates that fail are the batch's exit code."""
    monkeypatch.chdir(tmp_path)
    recipe = "{base: quick, steps: 2, rows: {count: 2}, held_out: {windows: 1, short_windows: 2, every: 2}}"
    write(
        tmp_path / "b.yaml",
        f"""
        version: 1
        defaults: {{source: bundled, method: yarn, to: 2x}}
        jobs:
          - {{name: tuned, calibrate: {{recipe: {recipe}, device: cpu}}, verify: smoke}}
          - {{name: tuned-too, calibrate: {{recipe: {recipe}, device: cpu}}}}
          - name: judged
            verify: {{tier: quick, device: cpu, retrieval: false, gates: {{short_nll: -5.0}}, report: "{{name}}.json"}}
        """,
    )
    options = BatchOptions(jobs=2)
    result = run(prepare(tmp_path / "b.yaml", options), options)
    found = {one.name: one for one in result.results}
    assert found["tuned"].verdict == "pass", found
    assert found["tuned"].stages["convert"]["calibration"]["steps"] == 2
    assert found["tuned-too"].stages["convert"]["how"] == "twin"
    assert found["judged"].status == "failed"
    assert (found["judged"].exit_code, result.exit_code) == (1, 1)
    assert json.loads((tmp_path / "judged.json").read_text())["judgement"]["verdict"] == "fail"
    again = run(prepare(tmp_path / "b.yaml", options), BatchOptions(jobs=2, resume=True))
    assert set(statuses(again).values()) == {"skipped"}
    assert again.exit_code == 1
