"""Conversions in processes of their own, to be killed: `killed_child.py SRC OUT`; imports nothing heavy.

Forks one conversion for each line on stdin and prints its process id once it is about to write, then its end on the
next line; so a hundred of them cost one interpreter start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ctxforge.checkpoint import Edits, ScaleRows, read_checkpoint, write_checkpoint


def convert(source: Path, out: Path) -> None:
    """Convert with a changed config and an edited tensor in every shard."""
    checkpoint = read_checkpoint(source)
    names = [name for name in checkpoint.tensors if name.endswith("q_proj.weight")]
    edits = Edits({"config.json": b'{"converted": true}'}, tuple(ScaleRows(name, 1.25) for name in names))
    os.write(1, f"{os.getpid()}\n".encode())
    write_checkpoint(checkpoint, edits, out, finish=lambda _: {"ctxforge.json": b"{}"})


def main() -> None:
    """Serve until stdin closes."""
    import numpy  # noqa: F401  imported once here rather than in every fork

    source = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            convert(source, Path(line.strip()))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        os.write(1, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
