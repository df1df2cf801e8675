"""Handing the published benchmarks over to lm-evaluation-harness, with the length budget kept in ctxforge's hands.

lm-eval cuts a prompt that is longer than `max_length` from the left and says so in a log line only; here a document
that does not fit is left out, counted and reported, or refused. Importing this package imports neither torch nor
lm_eval.
"""

from __future__ import annotations

from ctxforge.verification.external.budget import Budget, LeftOut, asked_length
from ctxforge.verification.external.options import BENCHMARKS, ExternalOptions, external_options
from ctxforge.verification.external.require import EXTRA, OLDEST, require_lm_eval
from ctxforge.verification.external.result import Average, ExternalReport, NotRun, TaskScore
from ctxforge.verification.external.run import run_external

__all__ = [
    "BENCHMARKS",
    "EXTRA",
    "OLDEST",
    "Average",
    "Budget",
    "ExternalOptions",
    "ExternalReport",
    "LeftOut",
    "NotRun",
    "TaskScore",
    "asked_length",
    "external_options",
    "require_lm_eval",
    "run_external",
]
