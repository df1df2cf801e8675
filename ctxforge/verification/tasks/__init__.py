"""Synthetic and given tasks: prompts in token space, and what a model scores on them.

    frame = Frame(tokenizer)                                    # or Frame(tokenizer, chat=True)
    prompts = list(build_all("passkey", frame, lengths=[4096], seeds=4))
    scores = score(OnePass(model, longest=4096), tokenizer, prompts)

Importing this package imports neither torch nor transformers; `score` and `greedy` do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctxforge.verification.tasks.build import build, build_all
from ctxforge.verification.tasks.frame import Frame
from ctxforge.verification.tasks.registry import ALIASES, TASKS, find_task
from ctxforge.verification.tasks.types import Prompt, PromptScore, Question, Task

if TYPE_CHECKING:
    from ctxforge.verification.tasks.scoring import greedy, score

__all__ = [
    "ALIASES",
    "TASKS",
    "Frame",
    "Prompt",
    "PromptScore",
    "Question",
    "Task",
    "build",
    "build_all",
    "find_task",
    "greedy",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in ("greedy", "score"):
        return getattr(import_module(f"{__name__}.scoring"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
