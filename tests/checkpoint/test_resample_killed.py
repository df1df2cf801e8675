"""SIGKILL while a table is being stretched: the source is untouched, the output is whole or absent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from ctxforge.checkpoint import read_checkpoint, verify_integrity
from tests.checkpoint.builders import build, digest, tree
from tests.killing import Kills

KILLS = 25
_CODE = """
import os, sys
from pathlib import Path
import numpy
from ctxforge.checkpoint import Edits, ResampleRows, read_checkpoint, write_checkpoint
source, out = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint = read_checkpoint(source)
names = [name for name in checkpoint.tensors if name.endswith("q_proj.weight")]
edits = Edits({"config.json": b"{}"}, tuple(ResampleRows(name, 1200, 2) for name in names))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.write(1, f"{os.getpid()}\\n".encode())
        write_checkpoint(checkpoint, edits, out, finish=lambda _: {"ctxforge.json": b"{}"})
        os._exit(0)
    os.waitpid(child, 0)
    os.write(1, b"ended\\n")
"""
_STAGING = re.compile(r"\.out\.ctxforge-\d+-[0-9a-f]{8}")


def staging(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if _STAGING.fullmatch(path.name)}


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_or_none(tmp_path: Path) -> None:
    source = build(tmp_path / "src", shards=3, hidden=320)  # 5 MB, some 6 MB more when stretched
    before = digest(source)
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _CODE, str(source), str(out)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def start() -> int:
            parent.stdin.write("\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        start()
        began = time.monotonic()
        assert parent.stdout.readline() == "ended\n"
        seconds = time.monotonic() - began
        expected = tree(out)
        shutil.rmtree(out)
        kills = Kills(KILLS, 5, seconds, lambda: staging(tmp_path))
        for _ in kills:
            child = start()
            kills.wait(out.exists)
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            kills.count()
            if out.exists():
                assert tree(out) == expected
                shutil.rmtree(out)
        start()
        assert parent.stdout.readline() == "ended\n"
        parent.stdin.close()
    kills.enough()
    assert digest(source) == before
    assert tree(out) == expected
    assert verify_integrity(out) == []
    assert read_checkpoint(out).tensors["model.layers.0.self_attn.q_proj.weight"].shape == (1202, 320)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
