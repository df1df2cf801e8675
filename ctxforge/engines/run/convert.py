"""The GGUF that llama.cpp's converter makes of a folder, in float32, for measuring."""

from __future__ import annotations

from pathlib import Path

from ctxforge.engines.run.discover import python_for
from ctxforge.engines.run.session import TIMEOUT_SECONDS
from ctxforge.engines.run.table import RUNNERS
from ctxforge.engines.run.worker import ask


def convert_to_gguf(folder: Path, out: Path) -> bool:
    """Convert `folder` to `out`; False where no environment has the converter.

    A tokenizer that the converter doesn't know is replaced by a made-up vocabulary: good for measuring with token ids,
    and for nothing else.

    Raises:
        WorkerError: the converter refuses.
    """
    row = RUNNERS["llama.cpp"]
    python = python_for(row)
    if python is None:
        return False
    ask(
        python, row.worker, {"folder": str(folder.resolve()), "convert_to": str(out.resolve())}, seconds=TIMEOUT_SECONDS
    )
    return True
