"""From the best adapter to a finished checkpoint: merged, with its provenance, and measured as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge.calibrate.adapters import MergeRecord, merge
from ctxforge.checkpoint import Checkpoint, Progress
from ctxforge.provenance import FILE_NAME
from ctxforge.version import __version__


def finish(
    checkpoint: Checkpoint,
    adapter: Path,
    out: Path,
    *,
    record: Mapping[str, Any],
    calibration: Mapping[str, Any],
    overwrite: bool = False,
    link: bool = False,
    progress: Progress | None = None,
) -> MergeRecord:
    """Merge, and write the provenance of the base with the calibration added to it.

    Args:
        checkpoint: the base, local.
        adapter: the folder of what was trained.
        out: the checkpoint to make.
        record: the base's provenance.
        calibration: what is recorded of the run.
        overwrite, link, progress: see `merge`.

    Raises:
        CtxforgeError: see `merge`.
    """
    assert checkpoint.root is not None

    def provenance(merged: MergeRecord) -> Mapping[str, bytes]:
        entry = {**calibration, "ctxforge": __version__, "merge": _short(merged)}
        small = {name: digest for name, digest in merged.sha256.items() if name != FILE_NAME}
        document = {
            **record,
            "files": dict(sorted({**dict(record.get("files", {})), **small}.items())),
            "edited_tensors": dict(
                sorted({**dict(record.get("edited_tensors", {})), **{t.name: t.sha256 for t in merged.tensors}}.items())
            ),
            "calibrations": [*record.get("calibrations", ()), entry],
        }
        return {FILE_NAME: (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()}

    return merge(checkpoint.root, adapter, out, link=link, overwrite=overwrite, finish=provenance, progress=progress)


def _short(merged: MergeRecord) -> dict[str, Any]:
    """The merge without a line for each tensor, and without the base's folder, which is of this machine."""
    document = {key: value for key, value in merged.document().items() if key != "adapter_source"}
    return {**document, "tensors": len(merged.tensors)}
