"""From a folder and a text to a report: finds the lengths and the source that `ctxforge.verify` needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.checkpoint import Checkpoint, fetch, read_checkpoint
from ctxforge.errors import CheckpointError, UsageError
from ctxforge.pipeline import understand_checkpoint
from ctxforge.provenance import FILE_NAME, recorded_target
from ctxforge.sources import resolve_source

if TYPE_CHECKING:
    from ctxforge.verify import VerifyReport, VerifySettings

Progress = Callable[[str, int, int], None]


def verify_folder(
    folder: Path,
    *,
    text: str,
    source: str | None = None,
    trained_length: int | None = None,
    target_length: int | None = None,
    settings: VerifySettings | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Measure the checkpoint in `folder`.

    The lengths come from its provenance where the arguments are silent, then from its config and the source's.

    Args:
        folder: a converted checkpoint (or any other).
        text: what to measure on.
        source: the checkpoint it was made from; measured on the same tokens when given.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        settings: see `VerifySettings`.
        progress: called with (what, done, of how many).

    Raises:
        CtxforgeError: a folder, the text or a length won't do.
    """
    from ctxforge.verify import VerifySettings, verify

    checkpoint = read_checkpoint(resolve_source(str(folder)))
    local = _local(checkpoint)
    origin = None if source is None else _local(read_checkpoint(resolve_source(source)))
    target = target_length or _target(checkpoint)
    trained = trained_length or _trained(checkpoint, origin)
    if trained > target:
        raise UsageError(
            f"the trained length of {trained} exceeds the target of {target} tokens", "pass --to with a longer length"
        )
    return verify(
        _root(local),
        source_dir=None if origin is None else _root(origin),
        text=text,
        trained_length=trained,
        target_length=target,
        settings=settings or VerifySettings(),
        progress=progress,
    )


def _local(checkpoint: Checkpoint) -> Checkpoint:
    ready = checkpoint.root is not None and checkpoint.weights == "safetensors"
    return checkpoint if ready else fetch(checkpoint)


def _root(checkpoint: Checkpoint) -> Path:
    assert checkpoint.root is not None
    return checkpoint.root


def _target(checkpoint: Checkpoint) -> int:
    recorded = recorded_target(checkpoint.json_files.get(FILE_NAME))
    if recorded is not None:
        return recorded
    geometry = understand_checkpoint(checkpoint)
    return geometry.trained_length or geometry.max_position_embeddings


def _trained(checkpoint: Checkpoint, origin: Checkpoint | None) -> int:
    plan: Any = (checkpoint.json_files.get(FILE_NAME) or {}).get("plan")
    recorded = plan.get("original_length") if isinstance(plan, Mapping) else None
    if isinstance(recorded, int) and not isinstance(recorded, bool) and recorded > 1:
        return recorded
    geometry = understand_checkpoint(checkpoint if origin is None else origin)
    length = geometry.trained_length if origin is not None else geometry.original_length
    if length is None:
        raise CheckpointError(f"the trained length is {geometry.evidence}", "pass --trained-length")
    return length
