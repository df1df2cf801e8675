"""SIGKILL at random moments of a merge: the base is untouched, the output is whole or absent, a rerun succeeds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ctxforge.calibrate.adapters.digest import weights_digest
from ctxforge.calibrate.adapters.files import RECORD, WEIGHTS, Entry, document
from ctxforge.calibrate.adapters.recipe import AdapterRecipe
from ctxforge.checkpoint import read_checkpoint, verify_integrity, write_safetensors_stream
from tests.checkpoint.builders import build, digest, tree
from tests.killing import Kills

CHILD = """
import os, sys
from pathlib import Path
import numpy
from ctxforge.calibrate.adapters.merging import merge
base, adapter = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.write(1, f"{os.getpid()}\\n".encode())
        merge(base, adapter, Path(line.strip()))
        os._exit(0)
    os.write(1, f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
"""


def write_adapter(base: Path, folder: Path, rank: int = 4) -> Path:
    """An adapter on every query projection, without torch."""
    checkpoint = read_checkpoint(base)
    folder.mkdir()
    draw = np.random.default_rng(0)
    entries, specs, data = [], [], {}
    for name, info in checkpoint.tensors.items():
        if not name.endswith("q_proj.weight"):
            continue
        entries.append(Entry(name, "attention", (name,), info.shape, "low-rank", scale=0.75))
        for part, shape in (("lora_A", (rank, info.shape[1])), ("lora_B", (info.shape[0], rank))):
            specs.append((f"{name}.{part}", "F32", shape))
            data[f"{name}.{part}"] = draw.normal(size=shape).astype("<f4")
    write_safetensors_stream(folder / WEIGHTS, specs, lambda name: [data[name].tobytes()])
    recipe = AdapterRecipe(rank=rank, alpha=3.0)
    found = document(recipe, "base", weights_digest(checkpoint), tuple(entries), {})
    (folder / RECORD).write_text(json.dumps(found))
    return folder


def staging(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".out.ctxforge-")}


def test_a_kill_at_any_moment_leaves_the_base_and_no_half_output(tmp_path: Path) -> None:
    base = build(tmp_path / "base", shards=4, hidden=320)
    adapter = write_adapter(base, tmp_path / "adapter")
    before, out = digest(base), tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CHILD, str(base), str(adapter)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as children:
        assert children.stdin is not None
        assert children.stdout is not None

        def start(target: Path) -> int:
            children.stdin.write(f"{target}\n")
            children.stdin.flush()
            return int(children.stdout.readline())

        start(tmp_path / "whole")
        assert children.stdout.readline().strip() == "ended 0"
        expected = tree(tmp_path / "whole")
        began = time.monotonic()
        start(out)
        assert children.stdout.readline().strip() == "ended 0"
        seconds = time.monotonic() - began
        shutil.rmtree(out)
        kills = Kills(10, 2, seconds, lambda: staging(tmp_path))
        for _ in kills:
            child = start(out)
            kills.wait(out.exists)
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(child, signal.SIGKILL)
            assert children.stdout.readline().strip() in ("ended 0", "ended -9")
            kills.count()
            if out.exists():
                assert tree(out) == expected
                shutil.rmtree(out)
        kills.enough()
        start(out)
        assert children.stdout.readline().strip() == "ended 0"
        children.stdin.close()
    assert tree(out) == expected
    assert verify_integrity(out) == []
    assert digest(base) == before
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {".out.ctxforge.lock", ".whole.ctxforge.lock"} == {"adapter", "base", "out", "whole"}


@pytest.mark.parametrize("modules", [("torch", "transformers", "peft")])
def test_merging_imports_no_torch(modules: tuple[str, ...], tmp_path: Path) -> None:
    base = build(tmp_path / "base", shards=2, hidden=64)
    adapter = write_adapter(base, tmp_path / "adapter")
    code = (
        "import sys\nfrom ctxforge.calibrate.adapters import merge\n"
        "merge(*sys.argv[1:4])\nprint(sorted(set(sys.argv[4:]) & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(base), str(adapter), str(tmp_path / "out"), *modules]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
