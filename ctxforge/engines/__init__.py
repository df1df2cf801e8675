"""What each engine makes of a checkpoint: by its reader's rules, kept as data, and by running it where it can.

`report(config)` says for every engine whether it honours the config, with which flags, what it computes instead, or
that it refuses. Nothing here imports an engine; `ctxforge.engines.run` runs those that are installed.
"""

from ctxforge.engines.report import report
from ctxforge.engines.types import EngineReport, EngineVerdict

__all__ = ["EngineReport", "EngineVerdict", "report"]
