"""Keys: two runs of a stage with the same key give the same result, so one of them is enough."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ctxforge.batch.objects import calibration_recipe
from ctxforge.batch.specs import CalibrateSpec, PushSpec, VerifySpec
from ctxforge.pipeline import Conversion
from ctxforge.version import __version__

# Fields that say where a run works or is told of, and change nothing about its result.
_APART = ("work", "tracker", "save_every", "plot", "report", "junit")


def key_of(*parts: Any) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def work_key(conversion: Conversion, fingerprint: str, calibration: Any = None) -> str:
    """What a conversion does to which bytes, whatever its recipe calls it: source, files written, tensors edited.

    Args:
        conversion: planned.
        fingerprint: of its source.
        calibration: what `calibration_key` gave, for a job that is fine-tuned too.
    """
    edits = conversion.edits
    files = {name: hashlib.sha256(data).hexdigest() for name, data in edits.files.items()}
    # A fine-tune reads the plan too, lengths above all; its provenance is copied with the rest.
    asked = None if calibration is None else dataclasses.asdict(conversion.recipe)
    return key_of(__version__, fingerprint, files, [repr(edit) for edit in edits.tensors], asked, calibration)


def calibration_key(spec: CalibrateSpec, guard_texts: tuple[str, ...]) -> Any:
    """What a fine-tune depends on: its recipe, its data files as they are now, the texts that are left out."""
    fields = _fields(spec)
    fields["recipe"] = dataclasses.asdict(calibration_recipe(spec))
    fields["data"] = [[entry, _file_identity(entry)] for entry in spec.data]
    fields["guard_paths"] = [hashlib.sha256(text.encode()).hexdigest() for text in guard_texts]
    return fields


def verify_key(converted: str, spec: VerifySpec, text: str) -> str:
    """Of the verification of a conversion with the key `converted`."""
    data = [[name, _file_identity(path)] for name, path in sorted(spec.task_data.items())]
    gates = _file_identity(spec.gates) if isinstance(spec.gates, str) else None
    return key_of(__version__, converted, _fields(spec), hashlib.sha256(text.encode()).hexdigest(), data, gates)


def push_key(converted: str, spec: PushSpec) -> str:
    """Of the publication of a conversion with the key `converted`."""
    return key_of(__version__, converted, _fields(spec))


def _fields(spec: CalibrateSpec | VerifySpec | PushSpec) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(spec).items() if name not in _APART}


def _file_identity(entry: str) -> list[int] | None:
    """Size and time of change of the file that a source of data names, if it names one."""
    path = Path(entry.partition("::")[0].partition("#")[0])
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]
