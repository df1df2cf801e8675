"""Names that stand for a source: the bundled model."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

BUNDLED = "bundled"


def resolve_source(source: str) -> str:
    """`source`, with `bundled` replaced by the folder of the bundled model."""
    return str(bundled_model()) if source == BUNDLED else source


def bundled_model() -> Path:
    """Folder of the byte-level Llama that ships with ctxforge."""
    return Path(str(resources.files("ctxforge") / "bundled" / "model"))


def bundled_text() -> str:
    """The held-out text that ships with the bundled model: public-domain English prose."""
    return (resources.files("ctxforge") / "bundled" / "text.txt").read_text(encoding="utf-8")


def bundled_calibration_data() -> Path:
    """The documents that the bundled model is calibrated on where no data is given: `text` in gzipped JSON lines.

    Prose of the books it was trained on, most of it longer than 8 times its trained length, with numbers, lines and
    strings that are asked for at distances up to that. Disjoint from `bundled_text` and from the words that
    verification asks with. Written by training/calibration.py.
    """
    return Path(str(resources.files("ctxforge") / "bundled" / "calibration.jsonl.gz"))
