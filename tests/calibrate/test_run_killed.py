"""SIGTERM and SIGKILL at any moment, and a full disk: the same command goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.calibrate.run_builders import build, left, losses, tree, weights

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("run_child.py")
SETTINGS = (
    "rows.count=2",
    "rows.short_share=0.5",
    "optimiser.learning_rate=0.01",
    "optimiser.warmup=2",
    "adapter.dropout=0.2",
    "held_out.windows=1",
    "held_out.short_windows=1",
    "held_out.share=0.2",
    "held_out.every=4",
    "held_out.patience=none",
)


class Children:
    """Calibrations in processes of their own, one after another."""

    def __init__(self, server: subprocess.Popen[str], root: Path) -> None:
        self.server = server
        self.root = root
        self.said = root / "said.txt"

    def start(self, out: str, steps: int, *more: str, limit: int | None = None) -> int:
        """Begin; the process's id."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        changes = [word for one in SETTINGS for word in ("--set", one)]
        arguments = ["calibrate", str(self.root / "base"), "--recipe", "full", "--data", str(self.root / "data.jsonl")]
        arguments += ["--out", str(self.root / out), "--steps", str(steps), *changes, *more]
        self.server.stdin.write(json.dumps([str(self.said), limit, arguments]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self) -> int:
        """Wait for the end; its exit code, or minus the signal."""
        assert self.server.stdout is not None
        word, code = self.server.stdout.readline().split()
        assert word == "ended"
        return int(code)

    def run(self, out: str, steps: int, *more: str, limit: int | None = None) -> int:
        """Both."""
        self.start(out, steps, *more, limit=limit)
        return self.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CTXFORGE_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    command = [sys.executable, str(CHILD)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def children(server: subprocess.Popen[str], tmp_path: Path) -> Children:
    build(tmp_path)
    return Children(server, tmp_path)


def wait_for(pid: int, seen: Callable[[], bool]) -> None:
    """Until something is seen, or the process has ended."""
    while not seen():
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return
        except OSError:
            return
        time.sleep(0.001)


def lines(work: Path) -> int:
    """Whole lines of a run's log."""
    try:
        return (work / "log.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def assert_whole(work: Path) -> int | None:
    """A state is whole or absent; its step."""
    state = work / "state"
    if not state.exists():
        return None
    assert set(tree(state)) == {"run.json", "optimiser.pt", "adapter/adapter.json", "adapter/adapter.safetensors"}
    return int(json.loads((state / "run.json").read_text())["step"])


def test_a_polite_end(children: Children) -> None:
    root = children.root
    assert children.run("straight", 40, "--save-every", "100") == 0, children.said.read_text()
    before = tree(root / "base")
    pid = children.start("out", 40, "--save-every", "100")
    work = root / "out.calibration"
    wait_for(pid, lambda: lines(work) > 8)
    os.kill(pid, signal.SIGTERM)
    assert children.end() == 130
    said = children.said.read_text().splitlines()
    assert len(said) == 2, said
    assert said[0].startswith("Error: stopped after step ")
    assert said[1] == "Hint: run the same command again to go on from there"
    step = assert_whole(work)
    assert said[0] == f"Error: stopped after step {step} of 40"
    assert losses(work / "log.jsonl")[-1][0] == step
    assert not (root / "out").exists()
    assert left(root) == []
    assert children.run("out", 40, "--save-every", "100") == 0, children.said.read_text()
    assert weights(root / "out") == weights(root / "straight")
    assert losses(work / "log.jsonl") == losses(root / "straight.calibration" / "log.jsonl")
    assert tree(root / "base") == before


def test_a_kill_at_any_moment(children: Children) -> None:
    root = children.root
    assert children.run("straight", 12, "--save-every", "1") == 0, children.said.read_text()
    expected = tree(root / "straight")
    count = lines(root / "straight.calibration")
    work, out = root / "out.calibration", root / "out"
    draw = random.Random(0)
    # Sorted, so that each run gets farther than the one before; the log grows with steps, measurements and states.
    moments = sorted(draw.sample(range(1, count), 5))
    steps: list[int | None] = []
    swaps = 0
    for moment in moments:
        pid = children.start("out", 12, "--save-every", "1")
        wait_for(pid, lambda moment=moment: lines(work) >= moment)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.005))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert children.end() in (0, -9), children.said.read_text()
        steps.append(assert_whole(work))
        swaps += any(name.startswith(("out.calibration/.state.", "out.calibration/.best.")) for name in left(root))
        if out.exists():
            assert tree(out)["model.safetensors"] == expected["model.safetensors"]
            shutil.rmtree(out)
    # Once while the states are being written, and once while the output is.
    for watched, name in ((work, ".state.ctxforge-*-*"), (root, ".out.ctxforge-*-*")):
        pid = children.start("out", 12, "--save-every", "1", "--overwrite")
        wait_for(pid, lambda watched=watched, name=name: any(watched.glob(name)))  # type: ignore[misc]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert children.end() in (0, -9), children.said.read_text()
        swaps += any(name.startswith(("out.calibration/.state.", ".out.ctxforge-")) for name in left(root))
        assert_whole(work)
        if out.exists():
            assert tree(out)["model.safetensors"] == expected["model.safetensors"]
            shutil.rmtree(out)
    assert [step for step in steps if step is not None] == sorted(step for step in steps if step is not None)
    assert any(steps), f"no kill landed after a step: {steps}"
    assert swaps >= 1, "no kill landed while something was being written"
    assert children.run("out", 12, "--save-every", "1") == 0, children.said.read_text()
    # The names of files and all their bytes; the provenance holds no path of the run.
    assert tree(out) == expected
    assert losses(work / "log.jsonl") == losses(root / "straight.calibration" / "log.jsonl")
    assert left(root) == []


def test_a_full_disk(children: Children) -> None:
    root = children.root
    assert children.run("straight", 6, "--save-every", "2") == 0, children.said.read_text()
    pid = children.start("out", 6, "--save-every", "2")
    work = root / "out.calibration"
    wait_for(pid, lambda: lines(work) > 5)
    os.kill(pid, signal.SIGTERM)
    assert children.end() == 130
    kept = tree(work / "state")
    step = json.loads(kept["run.json"])["step"]
    assert 0 < step < 6
    sizes = {name: len(data) for name, data in kept.items()}
    assert sizes["optimiser.pt"] > sizes["adapter/adapter.safetensors"] > sizes["adapter/adapter.json"]
    # The log has room; the optimiser's state has none, then nor has the adapter.
    room = lines(work) and (work / "log.jsonl").stat().st_size + 4000
    for limit in (sizes["optimiser.pt"] - 1000, sizes["adapter/adapter.safetensors"] - 1000):
        assert limit > room
        assert children.run("out", 6, "--save-every", "2", limit=limit) == 5, children.said.read_text()
        said = children.said.read_text().splitlines()
        assert len(said) == 2, said
        assert said[0].startswith("Error: Out of disk space in ")
        assert said[1].startswith("Hint: Free some space")
        assert tree(work / "state") == kept
        assert left(root) == []
    assert not (root / "out").exists()
    assert children.run("out", 6, "--save-every", "2") == 0, children.said.read_text()
    assert weights(root / "out") == weights(root / "straight")
    assert losses(work / "log.jsonl") == losses(root / "straight.calibration" / "log.jsonl")
