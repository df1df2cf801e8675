"""Batches in processes of their own, to be killed: `killed_child.py FILE`; see tests/checkpoint/killed_child.py.

Forks one run of FILE with --resume for each line on stdin, and prints its process id, then its end on the next line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ctxforge.batch import BatchOptions, prepare, run
from ctxforge.errors import CtxforgeError


def main() -> None:
    """Serve until stdin closes."""
    import numpy  # noqa: F401  imported once here rather than in every fork

    file, options = Path(sys.argv[1]), BatchOptions(resume=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.write(1, f"{os.getpid()}\n".encode())
            try:
                code = run(prepare(file, options), options).exit_code
            except CtxforgeError as error:
                os.write(2, f"{error.cause}\n".encode())
                code = int(error.exit_code)
            os._exit(code)
        status = os.waitpid(child, 0)[1]
        os.write(1, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
