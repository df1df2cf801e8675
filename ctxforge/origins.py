"""What a checkpoint says about itself: what its positions are, which source it was made from, its lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge import provenance, schemes
from ctxforge.checkpoint import Checkpoint, fetch
from ctxforge.errors import CheckpointError
from ctxforge.schemes import Geometry
from ctxforge.sources import BUNDLED


def understand_checkpoint(checkpoint: Checkpoint, trained_length: int | None = None) -> Geometry:
    """The geometry of a checkpoint; an earlier ctxforge output tells its trained length in its provenance."""
    record = checkpoint.json_files.get(provenance.FILE_NAME)
    geometry = schemes.understand(checkpoint.config, trained_length, record)
    if geometry.trained_length is None:
        recorded = provenance.recorded_target(record)
        if recorded is not None:
            return schemes.understand(checkpoint.config, recorded, record)
    return geometry


def made_from_bundled(folder: Path) -> bool:
    """Whether the provenance in a folder says that it was made from the bundled model."""
    try:
        document = json.loads((folder / provenance.FILE_NAME).read_text(encoding="utf-8"))
        return bool(document["source"]["name"] == BUNDLED)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def recorded_source(checkpoint: Checkpoint) -> str | None:
    """The source that a conversion recorded, when it is the bundled model or a folder that is still there."""
    recorded: Any = (checkpoint.json_files.get(provenance.FILE_NAME) or {}).get("source")
    name = recorded.get("name") if isinstance(recorded, Mapping) else None
    if not isinstance(name, str):
        return None
    return name if name == BUNDLED or (Path(name) / "config.json").is_file() else None


def local(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint on this machine as safetensors: fetched or imported where it isn't."""
    ready = checkpoint.root is not None and checkpoint.weights == "safetensors"
    return checkpoint if ready else fetch(checkpoint)


def target_length(checkpoint: Checkpoint) -> int:
    """L' in tokens: what a conversion recorded, else what the config says."""
    recorded = provenance.recorded_target(checkpoint.json_files.get(provenance.FILE_NAME))
    if recorded is not None:
        return recorded
    geometry = understand_checkpoint(checkpoint)
    return geometry.trained_length or geometry.max_position_embeddings


def trained_length(checkpoint: Checkpoint, origin: Checkpoint | None) -> int:
    """L0 in tokens: what a conversion recorded, else what the config of the source or of the checkpoint says.

    Raises:
        CheckpointError: none of them does.
    """
    plan: Any = (checkpoint.json_files.get(provenance.FILE_NAME) or {}).get("plan")
    recorded = plan.get("original_length") if isinstance(plan, Mapping) else None
    if isinstance(recorded, int) and not isinstance(recorded, bool) and recorded > 1:
        return recorded
    geometry = understand_checkpoint(checkpoint if origin is None else origin)
    length = geometry.trained_length if origin is not None else geometry.original_length
    if length is None:
        raise CheckpointError(f"the trained length is {geometry.evidence}", "pass --trained-length")
    return length
