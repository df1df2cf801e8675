"""Which token stands where, and who sees whom, in a training batch.

Builders make rows (`Layout`) from token arrays and a seed alone: `full_length`, `pack`, `pack_many`, `mixed_windows`,
`from_segments`, `pose`, `cream`, `randomised`, `scattered`; `short_rows` says which rows of a batch hold short
documents. `collate` makes a `Batch` of them, `next_tokens` its targets, and `model_inputs` the arguments for a
transformers model whose attention then computes just that. `check_isolation` tries it out on the model before
training, `coverage` counts the distances that rows show. Recipes that need no layout of their own: LongLoRA and LongCE
use `full_length`, the latter with `Layout.weighted`; without RoPE (DroPE) positions don't matter, and rows are packed
or full length.
"""

from ctxforge.calibrate.placement.backends import Backend, backend_of
from ctxforge.calibrate.placement.batch import Batch, by_length, collate, next_tokens
from ctxforge.calibrate.placement.builders import (
    from_segments,
    full_length,
    mixed_windows,
    pack,
    pack_many,
    randomised,
    scattered,
    short_rows,
)
from ctxforge.calibrate.placement.coverage import Coverage, coverage
from ctxforge.calibrate.placement.cream import cream, cream_chunks
from ctxforge.calibrate.placement.inputs import model_inputs
from ctxforge.calibrate.placement.isolation import Isolation, check_isolation
from ctxforge.calibrate.placement.layout import Chunk, Layout, Run, from_chunks
from ctxforge.calibrate.placement.pose import pose, pose_chunks
from ctxforge.calibrate.placement.rotations import two_rotations
from ctxforge.calibrate.placement.schedules import annealed_scale_base, giraffe_scale_base
from ctxforge.calibrate.placement.windows import Sight, sight

__all__ = [
    "Backend",
    "Batch",
    "Chunk",
    "Coverage",
    "Isolation",
    "Layout",
    "Run",
    "Sight",
    "annealed_scale_base",
    "backend_of",
    "by_length",
    "check_isolation",
    "collate",
    "coverage",
    "cream",
    "cream_chunks",
    "from_chunks",
    "from_segments",
    "full_length",
    "giraffe_scale_base",
    "mixed_windows",
    "model_inputs",
    "next_tokens",
    "pack",
    "pack_many",
    "pose",
    "pose_chunks",
    "randomised",
    "scattered",
    "short_rows",
    "sight",
    "two_rotations",
]
