"""SIGKILL at 100 random moments: the source is untouched, the output is whole or absent, a rerun succeeds."""

from __future__ import annotations

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

from ctxforge.checkpoint import read_checkpoint, verify_integrity
from tests.checkpoint.builders import build, digest, tree
from tests.killing import Kills

KILLS = 100
CHILD = Path(__file__).parent / "killed_child.py"
STAGING = re.compile(r"\.out\.ctxforge-\d+-[0-9a-f]{8}")


def staging(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if STAGING.fullmatch(path.name)}


class Launcher:
    """Starts conversions, kills them, and says how they ended."""

    def __init__(self, source: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, str(CHILD), str(source)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, out: Path) -> int:
        """The process id of a conversion that has read the source and is about to write."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> str:
        """Wait for the conversion; its exit code, negative for a signal."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, out: Path) -> float:
        """A conversion that is left alone; the seconds that the writing took."""
        self.start(out)
        began = time.monotonic()
        assert self.end() == "ended 0"
        return time.monotonic() - began

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build(tmp_path / "src", shards=4, hidden=320)  # 7 MB


@pytest.fixture
def launcher(source: Path) -> Iterator[Launcher]:
    launcher = Launcher(source)
    yield launcher
    launcher.close()


def test_a_kill_at_any_moment_leaves_the_source_and_no_half_output(
    tmp_path: Path, source: Path, launcher: Launcher
) -> None:
    before = digest(source)
    out = tmp_path / "out"
    seconds = sorted(launcher.run(tmp_path / f"whole{number}") for number in range(3))[1]
    expected = tree(tmp_path / "whole0")
    assert tree(tmp_path / "whole1") == expected

    kills = Kills(KILLS, 20, seconds, lambda: staging(tmp_path))
    for _ in kills:
        child = launcher.start(out)
        kills.wait(out.exists)
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(child, signal.SIGKILL)
        assert launcher.end() in ("ended 0", "ended -9")
        kills.count()
        if out.exists():
            assert tree(out) == expected
            assert verify_integrity(out) == []
            shutil.rmtree(out)
    assert digest(source) == before
    kills.enough()

    launcher.run(out)
    assert tree(out) == expected
    assert read_checkpoint(out).config == {"converted": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src", "whole0", "whole1", "whole2"]


def test_a_kill_while_an_old_output_is_replaced(tmp_path: Path, source: Path) -> None:
    """With overwrite, the name always holds the old or the new checkpoint, never a mixture and never nothing."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom ctxforge.checkpoint import *\n"
        "source, out, mark = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
        "checkpoint = read_checkpoint(source)\nsys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        "edits = Edits({'config.json': ('{\"mark\": ' + mark + '}').encode()})\n"
        "write_checkpoint(checkpoint, edits, out, overwrite=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = tmp_path / "out"
    moments = random.Random(1)
    last, seconds = -1, 0.0
    for mark in range(12):
        command = [sys.executable, "-c", code, str(source), str(out), str(mark)]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            began = time.monotonic()
            if mark == 0:
                assert child.wait() == 0
                seconds = time.monotonic() - began
            else:
                time.sleep(moments.uniform(0, 1.1 * seconds))
                child.kill()
        found = read_checkpoint(out)
        assert verify_integrity(out) == []
        assert found.config["mark"] in (last, mark)
        last = found.config["mark"]
