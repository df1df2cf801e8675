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
    """The rows of the named engines, all when none is named; spelling may differ in case and punctuation.

    Raises:
        UsageError: an unknown name.
    """
    wanted = {_plain(name): name for name in names}
    for plain, name in wanted.items():
        if not any(_plain(known).startswith(plain) for known in NAMES):
            raise UsageError(f"unknown engine {name!r}", f"choose among: {', '.join(NAMES)}")
    if not wanted:
        return ENGINES
    return tuple(engine for engine in ENGINES if any(_plain(engine.name).startswith(plain) for plain in wanted))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
