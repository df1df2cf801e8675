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
