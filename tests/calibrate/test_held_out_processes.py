"""Two processes that hold half of every parameter each measure what one process does, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.calibrate.held_out_builders import cache_of

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("held_out_child.py")


def test_two_processes_measure_a_sharded_model(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    cache_of(tmp_path / "cache", [random.integers(3, 300, size) for size in (230, 220, 210, 5000)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    children = []
    for rank in range(2):
        command = [sys.executable, CHILD, tmp_path / "cache", str(rank), tmp_path / "meeting", outs[rank]]
        with logs[rank].open("w") as log:
            children.append(subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log))
    try:
        codes = [child.wait(200) for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    found = [json.loads(out.read_text()) for out in outs]
    for one in found:
        assert one["kinds"] == ["DTensor"]
        assert one["shared"] == one["alone"] == found[0]["alone"]
        assert one["same_reference"]
        assert one["trains"]
        # 3 long windows of 200 tokens fit one pass, 150 short ones of 32 make two: three passes for two processes.
        assert one["passes"] == 2
