"""All static checks of one checkpoint, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ctxforge.checkpoint import Checkpoint, read_checkpoint
from ctxforge.errors import CheckpointError, CtxforgeError
from ctxforge.positions.types import PositionGeometry
from ctxforge.rope.geometry import text_config
from ctxforge.sources import resolve_source
from ctxforge.static_checks import positions
from ctxforge.static_checks.recorded import Digest, hashes, local_digest, recorded_rotation
from ctxforge.static_checks.structure import broken, structure
from ctxforge.static_checks.types import Check, CheckReport, Fault, failed


def check(path: str | Path, *, revision: str | None = None) -> CheckReport:
    """Run every static check on a checkpoint.

    Structure, RoPE understood, both dialects agreeing, integer types, max_position_embeddings against the scaling,
    tokenizer length, and the hashes and lambda that `ctxforge.json` recorded. Of a Hub repository, config, tokenizer
    config, index and tensor headers are read, and recorded hashes compared with those that the Hub lists; no weight
    is moved.

    Args:
        path: a folder, or a Hub id `org/name` or `org/name@revision`; a folder that exists wins.
        revision: branch, tag or commit of a Hub id, instead of `@revision`.

    Raises:
        CtxforgeError: it can't be read as a checkpoint at all (no config.json, malformed headers, no network, ...).
    """
    checkpoint = read_checkpoint(resolve_source(str(path)), revision=revision)
    if checkpoint.weights == "gguf":
        raise CheckpointError(
            f"{path} is not a checkpoint folder", "give a folder in the transformers layout, or a Hub id"
        )
    if checkpoint.root is not None:
        found = _checks(checkpoint, checkpoint.root, local_digest(checkpoint))
        return CheckReport(str(path), tuple(found), str(checkpoint.root), checkpoint.revision)
    from ctxforge.static_checks.remote import Remote

    remote = Remote.of(checkpoint)
    found = _checks(checkpoint, remote.small, remote.digest)
    return CheckReport(str(path), tuple(found), remote.url, checkpoint.revision)


def _checks(checkpoint: Checkpoint, small: Path, digest: Digest) -> Iterator[Check]:
    yield structure(checkpoint, small)
    geometry, understood = positions.understood(checkpoint)
    yield understood
    if isinstance(geometry, PositionGeometry):
        yield positions.tokenizer(checkpoint, geometry)
    elif geometry is not None:
        _model_type, inner = text_config(checkpoint.config)
        yield positions.dialects(checkpoint, inner, geometry)
        yield positions.integer_types(checkpoint, inner)
        yield positions.max_positions(checkpoint, inner, geometry)
        yield positions.tokenizer(checkpoint, geometry)
        yield recorded_rotation(checkpoint, inner, geometry)
    yield hashes(checkpoint, digest)


def unreadable(path: str | Path, error: CtxforgeError) -> CheckReport:
    """The report of a checkpoint that `check` refused with `error`: of a broken folder, everything that is wrong."""
    root = Path(resolve_source(str(path)))
    if isinstance(error, CheckpointError) and root.is_dir():
        found = broken(root, error.cause)
    else:
        found = failed("readable", [Fault(error.cause)])
    return CheckReport(str(path), (found,), str(root) if root.is_dir() else "", error=error)
