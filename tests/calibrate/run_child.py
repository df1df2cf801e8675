"""Runs the command line in forks of a process that has imported everything, one after another.

Each line on stdin is a JSON list: where stderr goes, a limit of the size of files or null, and the arguments. It
answers with the process id when the fork has begun, and with `ended CODE` when it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import sys

import transformers.models.llama.modeling_llama  # noqa: F401  # loaded before the fork

import ctxforge.calibrate.run.calibrating  # noqa: F401
from ctxforge.cli import main


def run(said: str, limit: int | None, arguments: list[str]) -> None:
    """The command line, as its console script runs it; never returns."""
    code = 99
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["ctxforge", *arguments]
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Fork for each line."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(*json.loads(line))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"ended {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
