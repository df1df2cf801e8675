"""Runs the command line in groups of forks of a process that has imported everything, one group after another.

Each line on stdin is a JSON list: a folder, the number of processes and the arguments. Each fork has a launcher's
environment and leaves FOLDER/out-RANK.txt and FOLDER/err-RANK.txt. It answers with the process ids when they have
begun, and with `ended` and their exit codes when all have.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path

from ctxforge.cli import main

# What every fork would import for itself.
LOADED = (
    "accelerate.tracking",
    "peft",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "ctxforge.calibrate.held_out.passes",
    "ctxforge.calibrate.run.calibrating",
    "ctxforge.calibration",
    "ctxforge.cli.calibrate",
    "ctxforge.verification.protocols.contexts",
)


def run(folder: Path, rank: int, world: int, port: int, arguments: list[str]) -> None:
    """The command line as one process of a group; never returns."""
    code = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if world > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                ACCELERATE_USE_CPU="true",
            )
        sys.argv = ["ctxforge", *arguments]
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def say(numbers: list[int]) -> None:
    """Answer with one line."""
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


def serve() -> None:
    """Fork for each line."""
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        folder, world, port, arguments = json.loads(line)
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                run(Path(folder), rank, world, port, arguments)
            children.append(child)
        say(children)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        say(codes)


if __name__ == "__main__":
    serve()
