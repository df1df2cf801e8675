"""Perplexity as other people measure it: each protocol reproduced exactly, named, and with its traps written out.

A perplexity is only comparable with another of the same protocol on the same text: what a window is, where it starts,
which of its tokens are scored and how windows are averaged moves the number by more than most methods differ. Every
protocol here is a function of (source of losses, documents as token ids, settings) and returns a `ProtocolResult`
with one value and one weight a document, the unit of the statistics.

Importing this package imports neither torch nor numpy; they come with the first function that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxforge.verification.protocols.choose import ProtocolSettings, run_protocol
    from ctxforge.verification.protocols.reference import one_pass
    from ctxforge.verification.protocols.result import DocumentScore, ProtocolResult
    from ctxforge.verification.protocols.rolling import RollingResult, TextLength, lm_eval_rolling, text_length
    from ctxforge.verification.protocols.sliding import pi, yarn, yarn_truncated
    from ctxforge.verification.protocols.stream import longlora
    from ctxforge.verification.protocols.windows import FunctionScorer, ModelScorer, Window, WindowScorer, as_scorer

PROTOCOLS = ("one-pass", "yarn", "yarn-sliding", "pi", "longlora", "lm-eval")

_HOME = {
    "DocumentScore": "result",
    "FunctionScorer": "windows",
    "ModelScorer": "windows",
    "ProtocolResult": "result",
    "ProtocolSettings": "choose",
    "RollingResult": "rolling",
    "TextLength": "rolling",
    "Window": "windows",
    "WindowScorer": "windows",
    "as_scorer": "windows",
    "lm_eval_rolling": "rolling",
    "longlora": "stream",
    "one_pass": "reference",
    "pi": "sliding",
    "run_protocol": "choose",
    "text_length": "rolling",
    "yarn": "sliding",
    "yarn_truncated": "sliding",
}

__all__ = [
    "PROTOCOLS",
    "DocumentScore",
    "FunctionScorer",
    "ModelScorer",
    "ProtocolResult",
    "ProtocolSettings",
    "RollingResult",
    "TextLength",
    "Window",
    "WindowScorer",
    "as_scorer",
    "lm_eval_rolling",
    "longlora",
    "one_pass",
    "pi",
    "run_protocol",
    "text_length",
    "yarn",
    "yarn_truncated",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
