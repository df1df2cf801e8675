"""Starts `ctxforge calibrate` on one process or several, and reads what each said."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("processes_child.py")


@dataclass(frozen=True)
class Ended:
    """How a group of processes ended: exit codes, stdout and stderr by rank."""

    codes: list[int]
    out: list[str]
    err: list[str]


class Groups:
    """Runs of the command line, one group of processes after another."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.running: list[int] = []

    def begin(self, world: int, arguments: list[str]) -> list[int]:
        """Start a group; its process ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([str(self.folder), world, port, arguments]) + "\n")
        self.server.stdin.flush()
        self.running = self._read(400)  # the first one waits for imports
        return self.running

    def end(self, timeout: float = 400) -> Ended:
        """Wait for all of the group. A group that hangs is killed, and fails."""
        world = len(self.running)
        codes = self._read(timeout)
        said = [[(self.folder / f"{name}-{rank}.txt").read_text() for rank in range(world)] for name in ("out", "err")]
        self.running = []
        return Ended(codes, *said)

    def run(self, world: int, arguments: list[str]) -> Ended:
        """Both."""
        self.begin(world, arguments)
        return self.end()

    def until(self, seen: Callable[[], bool], timeout: float = 400) -> None:
        """Wait for something that a running group does."""
        late = time.monotonic() + timeout
        while not seen():
            if time.monotonic() > late or self._answered(0.002):
                raise AssertionError(f"not seen: {self._words()}")

    def _answered(self, timeout: float) -> bool:
        return bool(select.select([self.server.stdout], [], [], timeout)[0])

    def _read(self, timeout: float) -> list[int]:
        assert self.server.stdout is not None
        if not self._answered(timeout):
            for child in self.running:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self.server.stdout.readline()
            raise AssertionError(f"still running after {timeout} s: {self._words()}")
        found: list[int] = json.loads(self.server.stdout.readline())
        return found

    def _words(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*-*.txt")))


@contextmanager
def serving(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that everything is imported in; its token caches go to `cache`."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CTXFORGE_CACHE": str(cache),
        "CTXFORGE_NO_PROGRESS": "1",
    }
    command = [sys.executable, str(CHILD)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
