"""The engines, in the order of the report."""

from __future__ import annotations

from ctxforge.engines.readers import exllama, llamacpp, mlx_lm, sglang, tgi, transformers4, transformers5, vllm
from ctxforge.engines.types import Engine
from ctxforge.errors import UsageError

ENGINES: tuple[Engine, ...] = (
    *transformers5.ENGINES,
    *transformers4.ENGINES,
    *vllm.ENGINES,
    *sglang.ENGINES,
    *llamacpp.ENGINES,
    *tgi.ENGINES,
    *mlx_lm.ENGINES,
    *exllama.ENGINES,
)
NAMES = tuple(dict.fromkeys(engine.name for engine in ENGINES))


def find_engines(names: tuple[str, ...]) -> tuple[Engine, ...]:
    """The rows of the named engines, all when none is named.

    A name may be cut short, differ in case and punctuation, and go on into the version: "mlx", "vLLM 0.30",
    "transformers-4".

    Raises:
        UsageError: an unknown name.
    """
    if not names:
        return ENGINES
    found: list[Engine] = []
    for name in names:
        fitting = [engine for engine in ENGINES if _plain(engine.name + engine.versions).startswith(_plain(name))]
        if not fitting or not _plain(name):
            raise UsageError(f"unknown engine {name!r}", f"choose among: {', '.join(NAMES)}")
        found += fitting
    return tuple(engine for engine in ENGINES if engine in found)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
