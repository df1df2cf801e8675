"""A process that runs one task and ends: `python -m ctxforge.batch.child FD`, for `executors.local`.

The task comes on stdin, the result goes to the file descriptor FD. Stdin stays open: when it closes the parent is gone,
and the task is interrupted, as it is by SIGTERM.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

_GRACE = 15.0


def main() -> None:
    """Run the task that stdin brings."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin = sys.stdin.buffer
    size = int.from_bytes(stdin.read(8), "little")
    data = stdin.read(size)
    if len(data) < size or not size:
        return
    threading.Thread(target=_watch, daemon=True).start()
    answer = Connection(int(sys.argv[1]), readable=False)
    try:
        task = pickle.loads(data)  # from the parent process alone
        from ctxforge.batch.task import run_task

        result = run_task(task)
    except KeyboardInterrupt:
        from ctxforge.batch.results import TaskResult

        result = TaskResult("interrupted")
    answer.send(result)
    answer.close()


def _interrupt(_signal: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _watch() -> None:
    """Interrupt the task when the parent is gone; end without more ado where that doesn't help."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(130)


if __name__ == "__main__":
    main()
