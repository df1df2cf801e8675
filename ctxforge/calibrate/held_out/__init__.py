"""What a calibration measures on held-out data while it trains, and how the best step is chosen.

`held_out` takes the windows that every measurement of a run uses, `reference` has the source's losses on them,
`measure` those of the model as it stands, and a `Chooser` says which step was the best and when to stop. Torch comes
with the first call of `reference` or `measure`, not with this package.
"""

from ctxforge.calibrate.held_out.choice import Chooser
from ctxforge.calibrate.held_out.measuring import measure, reference
from ctxforge.calibrate.held_out.result import HeldOutResult, Reference, RelativeTo
from ctxforge.calibrate.held_out.settings import HeldOutSettings
from ctxforge.calibrate.held_out.windows import HeldOut, HeldOutWindow, held_out

__all__ = [
    "Chooser",
    "HeldOut",
    "HeldOutResult",
    "HeldOutSettings",
    "HeldOutWindow",
    "Reference",
    "RelativeTo",
    "held_out",
    "measure",
    "reference",
]
