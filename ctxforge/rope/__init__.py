"""What a model's RoPE is, what a method makes of it, and how a config expresses that.

The stages, in order: `understand` (config -> `RopeGeometry`), `make_plan` (geometry -> `RopePlan`, numbers alone),
`lower` (plan -> config and tensor edits), `prove` (recompute the emitted config and compare with the plan).
Nothing here imports torch: a plan is arithmetic on a few dozen numbers.
"""

from ctxforge.rope.geometry import understand
from ctxforge.rope.lower import Lowered, lower
from ctxforge.rope.methods import METHODS, Method, find_method
from ctxforge.rope.plan import make_plan
from ctxforge.rope.prove import prove
from ctxforge.rope.reader import dialect_differences, read_rotations
from ctxforge.rope.types import GroupPlan, RopeForm, RopeGeometry, RopeGroup, RopePlan, Rotation

__all__ = [
    "METHODS",
    "GroupPlan",
    "Lowered",
    "Method",
    "RopeForm",
    "RopeGeometry",
    "RopeGroup",
    "RopePlan",
    "Rotation",
    "dialect_differences",
    "find_method",
    "lower",
    "make_plan",
    "prove",
    "read_rotations",
    "understand",
]
