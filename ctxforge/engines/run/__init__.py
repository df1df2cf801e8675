"""Running engines on a checkpoint: what each really computes, token by token, against the plan."""

from ctxforge.engines.run.session import run_engines as run_engines
from ctxforge.engines.run.table import RUNNERS as RUNNERS
from ctxforge.engines.run.types import RunResult as RunResult

__all__ = ["RUNNERS", "RunResult", "run_engines"]
