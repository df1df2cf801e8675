"""What a run's scores are held against: measured once, and kept in the run's folder with what it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctxforge.calibrate.held_out import HeldOut, Reference, reference
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.parallel import Processes
from ctxforge.checkpoint.staging import writing
from ctxforge.errors import CheckpointError

REFERENCE = "reference.json"


def known_reference(folder: Path, windows: HeldOut, against: str) -> Reference | None:
    """The losses that an earlier run in `folder` measured; None where there are none of this model and these windows.

    Args:
        folder: of the run.
        windows: what is measured on.
        against: digest of the model that scores are held against.
    """
    try:
        document = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
        found = Reference.from_document(document["losses"])
        same = document["model"] == against
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return None
    return found if same and found.fits(windows) else None


def measure_reference(
    folder: Path, processes: Processes, windows: HeldOut, against: str, model: Any, name: str
) -> Reference:
    """Measure a model, and keep what was found in `folder`. All processes call it.

    Args:
        folder, windows, against: see `known_reference`.
        processes: what shares the windows.
        model: the source as loaded, or the `LossModel` that will be trained, where there is no source.
        name: of it, for the record.

    Raises:
        CtxforgeError: see `reference`.
        ResourceError: no space or no permission.
    """

    def add(values: list[float]) -> list[float]:
        return [processes.total(value) for value in values]

    found = reference(
        model,
        windows,
        source=name,
        relative_to="start" if isinstance(model, LossModel) else "source",
        rank=processes.data_rank,
        world=processes.data_world,
        add=add if processes.world > 1 else list,
    )

    def write() -> None:
        with writing(folder):
            aside = folder / f".{REFERENCE}.part"
            aside.write_text(json.dumps({"model": against, "losses": found.document()}), encoding="utf-8")
            aside.replace(folder / REFERENCE)

    processes.on_main(write)
    return found
