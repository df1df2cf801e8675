"""A conversion in a process of its own, to be killed: `killed_child.py SRC OUT`; imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path

from ctxforge.checkpoint import Edits, ScaleRows, read_checkpoint, write_checkpoint


def main() -> None:
    """Convert with a changed config and an edited tensor in every shard."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    checkpoint = read_checkpoint(source)
    names = [name for name in checkpoint.tensors if name.endswith("q_proj.weight")]
    edits = Edits({"config.json": b'{"converted": true}'}, tuple(ScaleRows(name, 1.25) for name in names))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    write_checkpoint(checkpoint, edits, out, finish=lambda report: {"ctxforge.json": b"{}"})


if __name__ == "__main__":
    main()
