"""Where the engines' environments are: as the environment variables say, else where `make engines` puts them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctxforge.engines.run import RUNNERS

_MADE = {
    "transformers-4": ".venv-transformers4",
    "vllm": ".venv-vllm",
    "mlx-lm": ".venv-mlx",
    "llama.cpp": ".venv-llamacpp",
}
ROOT = Path(__file__).parents[2]


def use(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Name the engine's Python for this test; skips where it is not installed."""
    if engine == "transformers":
        return
    variable = RUNNERS[engine].variable
    if os.environ.get(variable):
        return
    made = ROOT / _MADE[engine] / "bin" / "python"
    if not made.exists():
        pytest.skip(f"{engine} is not installed: run make engines, or name its Python in {variable}")
    monkeypatch.setenv(variable, str(made))
