"""How a calibration runs on one process or on several: `start` joins them, `Processes` is what the loop speaks to.

`options` says what can be asked for and refuses what can't work before anything is loaded; `preparing` wraps a model
for its processes; `passing` runs one micro-batch; `states` takes adapter and optimiser out of them and back, under the
trained tensors' names, so that a run may go on with another number of processes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ctxforge.calibrate.parallel.options import ParallelOptions

if TYPE_CHECKING:
    from ctxforge.calibrate.parallel.preparing import Prepared
    from ctxforge.calibrate.parallel.processes import Processes, start

_HOMES = {"Prepared": "preparing", "Processes": "processes", "start": "processes"}

__all__ = ["ParallelOptions", "Prepared", "Processes", "start"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: most need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
