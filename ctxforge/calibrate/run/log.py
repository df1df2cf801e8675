"""The run's record, one JSON object a line, and trackers beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.staging import writing


class RunLog:
    """Appends events to a file; each line is whole before the next begins.

    Args:
        path: of the file, or None for no file (processes other than the first).
        accelerator: whose trackers get the numbers too; None for none.
    """

    def __init__(self, path: Path | None, accelerator: Any = None) -> None:
        self.path = path
        self._accelerator = accelerator

    def rewind(self, step: int) -> None:
        """Drop what a resumed run writes anew: the events after `step`, an end, and a last line that was cut in half.

        Args:
            step: steps that the state holds.
        """
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if int(event.get("step", 0)) <= step and event.get("event") != "end":
                kept.append(line)
        with writing(self.path.parent):
            aside = self.path.with_suffix(".part")
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            aside.replace(self.path)

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one event.

        Args:
            event: what kind: start, step, held_out, saved, end.
            step: steps done when it happened.
            values: JSON data; numbers that JSON can't hold are written as null.

        Raises:
            ResourceError: the file can't be written.
        """
        if self.path is not None:
            with writing(self.path.parent), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "step": step, **_finite(values)}, ensure_ascii=False) + "\n")
        if self._accelerator is not None and event in ("step", "held_out"):
            numbers = {f"{event}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
            self._accelerator.log(numbers, step=step)


def _finite(value: Any) -> Any:
    """`value` without numbers that JSON can't hold."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
