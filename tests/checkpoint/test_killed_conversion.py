"""SIGKILL at 100 random moments: the source is untouched, the output is whole or absent, a rerun succeeds."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from ctxforge.checkpoint import read_checkpoint, verify_integrity
from tests.checkpoint.builders import build, digest, tree

KILLS = 100
CHILD = Path(__file__).parent / "killed_child.py"
STAGING = re.compile(r"\.out\.ctxforge-\d+-[0-9a-f]{8}")


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The child, once it has read the source and is about to write."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen([sys.executable, str(CHILD), str(source), str(out)], env=env, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def run(source: Path, out: Path) -> float:
    """A conversion that is left alone; the seconds that the writing took."""
    with start(source, out) as child:
        began = time.monotonic()
        assert child.wait() == 0
    return time.monotonic() - began


def test_a_kill_at_any_moment_leaves_the_source_and_no_half_output(tmp_path: Path) -> None:
    source = build(tmp_path / "src", shards=4, hidden=512)  # 17 MB
    before = digest(source)
    out = tmp_path / "out"
    seconds = min(run(source, tmp_path / f"whole{number}") for number in range(2))
    expected = tree(tmp_path / "whole0")
    assert tree(tmp_path / "whole1") == expected

    moments = random.Random(0)
    midway = finished = 0
    for _ in range(KILLS):
        with start(source, out) as child:
            time.sleep(moments.uniform(0, 1.1 * seconds))
            child.kill()
        midway += any(STAGING.fullmatch(path.name) for path in tmp_path.iterdir())
        if out.exists():
            finished += 1
            assert tree(out) == expected
            assert verify_integrity(out) == []
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            out.rmdir()
    assert digest(source) == before
    assert midway >= 20, f"only {midway} of {KILLS} kills landed while files were being written"

    run(source, out)
    assert tree(out) == expected
    assert read_checkpoint(out).config == {"converted": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src", "whole0", "whole1"]


def test_a_kill_while_an_old_output_is_replaced(tmp_path: Path) -> None:
    """With overwrite, the name always holds the old or the new checkpoint, never a mixture and never nothing."""
    source = build(tmp_path / "src", shards=2, hidden=256)
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
    for mark in range(20):
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
