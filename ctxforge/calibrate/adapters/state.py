"""An adapter's numbers to disk and back: a folder that is whole or absent, and checks before a number is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ctxforge.calibrate.adapters.attaching import Trained
from ctxforge.calibrate.adapters.files import RECORD, WEIGHTS, Adapter, document, read_adapter
from ctxforge.checkpoint import write_safetensors_stream
from ctxforge.checkpoint.staging import commit, locked, staged, sync_tree, write_new
from ctxforge.errors import CheckpointError, UsageError


def save_adapter(folder: str | Path, trained: Trained, notes: Mapping[str, Any] | None = None) -> Path:
    """Write what was trained to `folder`, which holds the new state whole or, after a kill, the old one.

    Of several processes, all call it where parameters are sharded (each gathers), and one gives the folder to keep.

    Args:
        folder: replaced if it holds an adapter; its parent must exist.
        trained: what `attach` gave.
        notes: JSON data to keep beside it: steps, seeds, losses.

    Raises:
        UsageError: the folder holds something else.
        CheckpointError: a trained number is NaN or infinite; nothing is written.
        ResourceError: no space or no permission.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / RECORD).is_file())):
        raise UsageError(f"{folder} exists and is not an adapter", "choose another folder")
    if not folder.parent.is_dir():
        raise UsageError(f"the folder {folder.parent} does not exist", f"make it first: mkdir -p {folder.parent}")
    parameters = dict(trained.tensors())
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter.detach()).all():
            raise CheckpointError(f"the trained {name} holds a NaN or an infinity", "go back to an earlier state")
    found = document(trained.recipe, trained.source, trained.digest, trained.entries, notes or {})
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def data(name: str) -> Iterator[memoryview]:
        yield _local(parameters[name]).numpy().data.cast("B")

    specs = [(name, "F32", tuple(parameter.shape)) for name, parameter in parameters.items()]
    needed = sum(4 * parameter.numel() for parameter in parameters.values()) + len(text)
    with locked(folder), staged(folder, needed) as staging:
        write_safetensors_stream(staging / WEIGHTS, specs, data)
        write_new(staging / RECORD, text.encode())
        sync_tree(staging)
        commit(staging, folder)
    return folder


def _local(parameter: Any) -> torch.Tensor:
    """A parameter's numbers on the CPU, gathered where they are sharded."""
    full = parameter.detach()
    if hasattr(full, "full_tensor"):
        full = full.full_tensor()
    found: torch.Tensor = full.to("cpu", torch.float32).contiguous()
    return found


def restore_adapter(folder: str | Path, trained: Trained) -> Adapter:
    """Read a saved state into the parameters of a model that was made trainable in the same way.

    Returns:
        The adapter, whose `notes` hold what was saved beside it.

    Raises:
        UsageError: not an adapter, or one of another recipe or another base.
        CheckpointError: damaged files, or a NaN among the numbers; the model is left as it was.
    """
    adapter = read_adapter(folder)
    if adapter.digest != trained.digest:
        raise UsageError(
            f"the adapter in {folder} was trained on other weights ({adapter.source})",
            "give the base that it was trained on, or start anew in another folder",
        )
    if adapter.recipe != trained.recipe or adapter.entries != trained.entries:
        raise UsageError(
            f"the adapter in {folder} was trained by another recipe", "resume with the recipe it began with"
        )
    # All are read before the first is taken, so that a damaged one leaves the model alone.
    numbers = {name: torch.from_numpy(adapter.numbers(name).copy()) for name, _ in trained.tensors()}
    with torch.no_grad():
        for name, parameter in trained.tensors():
            parameter.copy_(numbers[name])
    return adapter
