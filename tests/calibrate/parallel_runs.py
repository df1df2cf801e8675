"""Starts `parallel_child.py` on one process or several, and reads what it left."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.calibrate.parallel_child import Job

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("parallel_child.py")

# What each process found, by the job's name.
Found = dict[str, list[dict[str, Any]]]


def train(jobs: list[Job], folder: Path, world: int, *, timeout: float = 500) -> None:
    """Run jobs on `world` processes, which leave their results in `folder`."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, str(CHILD), str(folder / "jobs.json"), str(folder)]
    logs = [folder / f"log-{rank}.txt" for rank in range(world)]
    children = []
    for rank in range(world):
        own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        with logs[rank].open("w") as log:
            children.append(subprocess.Popen(command, env={**environment, **own}, stdout=log, stderr=log))
    try:
        codes = [child.wait(timeout) for child in children]
    finally:
        for child in children:
            child.kill()
    said = "\n".join(log.read_text()[-3000:] for log in logs)
    assert codes == [0] * world, said


def found_in(folder: Path) -> Found:
    """What `train` left."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in folder.glob("*.pt"):
        name, rank = path.stem.rsplit("-", 1)
        found.setdefault(name, {})[int(rank)] = torch.load(path)
    return {name: [ranks[rank] for rank in sorted(ranks)] for name, ranks in found.items()}


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once for all workers of a test run."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            aside = root / f"{name}.part"
            assert not aside.exists(), "another worker failed at this"
            aside.mkdir()
            make(aside)
            aside.rename(folder)
    return folder


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of tensors, of each relative to its largest number."""
    assert one.keys() == other.keys()
    assert one
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp_min(1e-30)) for name in one)
