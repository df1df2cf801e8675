"""How two checkpoints differ: JSON files key by key, what their rotations mean, tensors by their bytes, other files.

No model is built and torch is not imported; numpy only where the bytes of two tensors differ.
"""

from ctxforge.differences.compare import differences
from ctxforge.differences.json_changes import apply_changes, json_changes
from ctxforge.differences.types import (
    Amounts,
    Differences,
    FileDifference,
    HeaderDifference,
    JsonChange,
    JsonDifference,
    RotaryDifference,
    Sharding,
    TensorDifference,
)

__all__ = [
    "Amounts",
    "Differences",
    "FileDifference",
    "HeaderDifference",
    "JsonChange",
    "JsonDifference",
    "RotaryDifference",
    "Sharding",
    "TensorDifference",
    "apply_changes",
    "differences",
    "json_changes",
]
