"""Starts `parallel_child.py` on one process or several, and reads what it left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.calibrate.parallel_child import Job

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("parallel_child.py")


def train(jobs: list[Job], folder: Path, world: int, *, timeout: float = 400) -> dict[str, list[dict[str, Any]]]:
    """Run jobs on `world` processes: what each process found, by the job's name."""
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
    return {job.name: [torch.load(folder / f"{job.name}-{rank}.pt") for rank in range(world)] for job in jobs}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of tensors, of each relative to its largest number."""
    assert one.keys() == other.keys()
    assert one
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp_min(1e-30)) for name in one)
