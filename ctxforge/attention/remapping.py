"""What the systems share that tell the rotation another distance than the true one."""

from __future__ import annotations

from ctxforge.attention.types import Situation
from ctxforge.errors import UsageError


def usable_length(situation: Situation) -> int:
    """The length whose distances the rotation serves: L0 as trained, or L' where a RoPE method carries it there."""
    if situation.method == "none":
        return situation.trained_length
    return max(situation.trained_length, situation.target_length)


def refuse_dynamic(name: str, situation: Situation) -> None:
    """Raise UsageError beside a method whose table changes with the length: keys are rotated once and kept."""
    if not situation.static:
        whose = "the model's own scaling" if situation.method == "none" else situation.method
        raise UsageError(
            f"{name} keeps rotated keys, and the table of {whose} changes with the length",
            "choose a static method, such as yarn, or none",
        )


def refuse_short_reach(name: str, reach: int, situation: Situation, remedy: str) -> None:
    """Raise UsageError where `reach` tokens are fewer than the target."""
    if reach < situation.target_length:
        raise UsageError(f"{name} so reaches {reach} tokens, fewer than {situation.target_length}", remedy)


def comfortable(trained_length: int) -> int:
    """Two thirds of L0: distances that training met often (2401.01325's rule of thumb is a half to two thirds)."""
    return 2 * trained_length // 3
