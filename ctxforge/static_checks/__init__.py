"""Static checks of a checkpoint: what can be known without running it. Made for CI.

Each check has a name, a verdict and one line of detail. Nothing here opens a weight, but for hashes that a provenance
file recorded of local files. A checkpoint on the Hub is checked by its small files, tensor headers and listed hashes.
"""

from ctxforge.static_checks.run import check, unreadable
from ctxforge.static_checks.types import Check, CheckReport, Fault, Verdict

__all__ = ["Check", "CheckReport", "Fault", "Verdict", "check", "unreadable"]
