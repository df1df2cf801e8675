"""What engines are compared with: transformers 5, its rotary tables replaced by what our reader makes of the config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxforge.engines.run.discover import python_for
from ctxforge.engines.run.readings import PLANNED, Tables, readings
from ctxforge.engines.run.table import RUNNERS
from ctxforge.engines.run.worker import Answer, WorkerError, ask
from ctxforge.errors import CheckpointError, CtxforgeError, UsageError
from ctxforge.rope import understand
from ctxforge.rope.custom_code import find_attachment, find_code
from ctxforge.rope.types import RopeGeometry


@dataclass(frozen=True)
class Planned:
    """What a folder's config means.

    Attributes:
        tables: rotary tables by reading, see `readings.readings`.
        length: the longest prompt that the config means, in tokens; None where the config sets no limit
            or our reader can't tell.
        remark: why the reference is transformers' own reading, where it is.
        code: the name of the checkpoint's own code, which is not run here.
    """

    tables: Mapping[str, Tables] = field(default_factory=dict)
    length: int | None = None
    remark: str = ""
    code: str | None = None


def read_plan(folder: Path) -> Planned:
    """What the config of `folder` means.

    Raises:
        CheckpointError: there is no config.json, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}", "give a checkpoint's folder") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no JSON object", "repair config.json")
    code = find_code(config) or find_attachment(config)
    if code is not None:
        return Planned(code=code.name)
    try:
        geometry = understand(config)
    except CtxforgeError as error:
        return Planned(remark=f"compared with transformers' own reading: {error.cause}")
    tables = readings(geometry)
    remark = "" if PLANNED in tables else "compared with transformers' own reading: it is no fixed table"
    return Planned(tables, _length(geometry), remark)


def _length(geometry: RopeGeometry) -> int | None:
    """max_position_embeddings; None for tables that follow the length, which work past it."""
    if any(group.in_force.length_dependent for group in geometry.groups):
        return None
    return geometry.max_position_embeddings


def run_reference(folder: Path, text: str, tokens: int, planned: Planned, seconds: float) -> Answer:
    """The tokens of `text`, and their log-probabilities under every reading.

    Raises:
        UsageError: this environment has no transformers 5.
        CheckpointError: transformers can't run the folder.
    """
    row = RUNNERS["transformers"]
    python = python_for(row)
    if python is None:
        raise UsageError("the reference needs transformers 5", row.install)
    # Engines want room for the one token that they generate.
    count = tokens if planned.length is None else min(tokens, planned.length - 1)
    request: dict[str, Any] = {"folder": str(folder), "text": text, "tokens": count, "readings": dict(planned.tables)}
    try:
        return ask(python, row.worker, request, seconds=seconds)
    except WorkerError as error:
        raise CheckpointError(
            f"transformers 5 can't run {folder}: {error}", "without a reference no engine can be compared"
        ) from None


def bundled_text() -> str:
    """The beginning of Jane Austen's *Persuasion*, 200 KB."""
    import ctxforge

    return Path(ctxforge.__file__).with_name("bundled").joinpath("text.txt").read_text(encoding="utf-8")
