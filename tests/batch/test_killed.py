"""SIGKILL of a batch at any moment: nothing half-written, and --resume ends with the tree of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ctxforge.checkpoint import verify_integrity
from tests.batch.files import source, trees, write
from tests.checkpoint.builders import digest
from tests.killing import Kills

ROOT = Path(__file__).parents[2]
STAGING = re.compile(r"\..*\.ctxforge-\d+-[0-9a-f]{8}(-old)?")
BATCH = """
version: 1
output: out
defaults: {to: 8x}
jobs:
  - {name: first, source: large, method: {name: yarn, temperature: 1.25}}
  - {name: twin, source: large, method: {name: yarn, temperature: 1.25}}
matrix: {models: [large], methods: [pi, ntk, yarn], lengths: [4x, 8x]}
"""


class Launcher:
    """Starts batches, and says how they ended."""

    def __init__(self, file: Path) -> None:
        command = [sys.executable, str(Path(__file__).parent / "killed_child.py"), file.name]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=env, cwd=file.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source(tmp_path / "large", shards=3, hidden=320)
    write(tmp_path / "b.yaml", BATCH)
    return tmp_path


@pytest.fixture
def launcher(folder: Path) -> Iterator[Launcher]:
    launcher = Launcher(folder / "b.yaml")
    yield launcher
    launcher.close()


def staging(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if STAGING.fullmatch(path.name)} if folder.is_dir() else set()


def test_a_kill_at_any_moment(folder: Path, launcher: Launcher) -> None:
    out, before = folder / "out", digest(folder / "large")
    launcher.start()
    began = time.monotonic()
    assert launcher.end() == "ended 0"
    seconds = time.monotonic() - began
    expected = trees(out)
    assert len(expected) == 8
    shutil.rmtree(out)

    kills = Kills(10, 4, seconds, lambda: staging(out))
    whole = 0
    for _ in kills:
        child = launcher.start()
        kills.wait(lambda: False)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        ended = launcher.end()
        assert ended in ("ended 0", "ended -9")
        kills.count()
        # What has its final name is whole, whatever the journal got to say of it.
        for name, found in trees(out).items() if out.is_dir() else ():
            assert found == expected[name]
            assert verify_integrity(out / name) == []
        if ended == "ended 0":
            whole += 1
            assert trees(out) == expected
            shutil.rmtree(out)
    kills.enough()
    launcher.start()
    assert launcher.end() == "ended 0"
    assert trees(out) == expected
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert digest(folder / "large") == before
    lines = (out / "b.journal.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    starts = sum(json.loads(line)["event"] == "start" for line in lines.splitlines())
    launcher.start()
    assert launcher.end() == "ended 0"
    assert sum(b'"start"' in line for line in (out / "b.journal.jsonl").read_bytes().splitlines()) == starts


def command(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "ctxforge", "run", "b.yaml", "--json", "-q", *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background ignore Ctrl-C, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_workers_of_a_killed_batch_end_too_and_hold_the_journal_until_then(folder: Path) -> None:
    draw = random.Random(5)
    out = folder / "out"
    for round_ in range(2):
        with command(folder, "--jobs", "2", "--resume") as child:
            latest = time.monotonic() + 60
            while not staging(out) and child.poll() is None and time.monotonic() < latest:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.05 * round_))
            child.kill()
    with command(folder, "--jobs", "2", "--resume") as child:
        said, errors = child.communicate(timeout=240)
    assert child.returncode == 0, said + errors
    assert len(trees(out)) == 8
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert not any(verify_integrity(out / name) for name in trees(out))


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGTERM, "1"), (signal.SIGINT, "2")])
def test_an_interrupt_ends_jobs_cleanly_and_is_told(folder: Path, number: int, jobs: str) -> None:
    out = folder / "out"
    with command(folder, "--jobs", jobs) as child:
        latest = time.monotonic() + 60
        while not staging(out) and time.monotonic() < latest:
            time.sleep(0.001)
        child.send_signal(number)
        said, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    document = json.loads(said)
    assert document["status"] == "interrupted"
    assert set(document["counts"]) <= {"done", "interrupted", "not run"}
    assert staging(out) == set()
    journal = [json.loads(line) for line in Path(document["journal"]).read_text().splitlines()]
    begun = [event["job"] for event in journal if event["event"] == "start"]
    assert sorted(begun) == sorted(event["job"] for event in journal if event["event"] == "end")
    with command(folder, "--resume") as child:
        said, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert len(trees(out)) == 8
