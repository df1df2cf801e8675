"""Checks of a target length that learned tables and ALiBi share."""

from __future__ import annotations

from ctxforge.errors import UsageError

MAX_TARGET = 2**31 - 1
"""Largest target in tokens."""

_LARGEST_SCALE = 4096


def check_target(target: int | None, start: int) -> int:
    """The target length L', if it can be one for a model that works at `start` tokens.

    Raises:
        UsageError: missing, not longer than `start`, or absurd.
    """
    if target is None:
        raise UsageError("no target length", "say how long: --to 64k, --to 8x or --to 65536")
    if target <= start:
        raise UsageError(
            f"the target of {target} tokens is not longer than the {start} that the model works at already",
            f"ask for more than {start} tokens, or pass --trained-length if the model was trained at less",
        )
    if target > MAX_TARGET or target / start > _LARGEST_SCALE:
        raise UsageError(
            f"a target of {target} tokens is {target / start:.0f} times the trained length of {start}",
            f"ask for at most {min(MAX_TARGET, _LARGEST_SCALE * start)} tokens",
        )
    return target
