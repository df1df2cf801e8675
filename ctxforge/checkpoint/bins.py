"""Convert `.bin` (pickled) weights to safetensors, one shard at a time and without running what the pickle says."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.cache import imported
from ctxforge.checkpoint.files import file_sha256, reading
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.checkpoint.layout import BIN_INDEX, INDEX, SINGLE
from ctxforge.checkpoint.local import read_json, read_local
from ctxforge.checkpoint.rewrite import TensorSpec, write_safetensors_stream
from ctxforge.checkpoint.staging import write_new
from ctxforge.checkpoint.types import Checkpoint, Progress
from ctxforge.errors import CheckpointError, UnsupportedError

_REMEDY = "Use a safetensors version of this model."


def import_bins(checkpoint: Checkpoint, progress: Progress | None) -> Checkpoint:
    """Convert a local `.bin` checkpoint to a safetensors folder in the cache, or find the one made earlier.

    The partition into shards is kept. Tensors that share storage are written out one by one; only `lm_head.weight` is
    left out where it is the embedding itself and the config ties the two.

    Raises:
        CheckpointError: a file isn't a dictionary of tensors, or a tensor is in two files.
        UnsupportedError: a dtype that safetensors hasn't.
        ResourceError: no space for the cache.
    """
    root = checkpoint.root
    assert root is not None
    digest = hashlib.sha256()
    for info in checkpoint.files:
        digest.update(f"{info.name}\0{file_sha256(root / info.name)}\n".encode())
    folder = imported(
        digest.hexdigest(), lambda staging: _convert(checkpoint, root, staging, progress), checkpoint.weight_bytes
    )
    return read_local(folder, source=checkpoint.source, revision=checkpoint.revision)


def _convert(checkpoint: Checkpoint, root: Path, staging: Path, progress: Progress | None) -> None:
    shards = checkpoint.shards
    placed: dict[str, str] = {}
    total = done = 0
    for number, shard in enumerate(shards, 1):
        target = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _drop_tied(_load(root / shard, shard), bool(checkpoint.config.get("tie_word_embeddings")))
        for name, tensor in tensors.items():
            if name in placed:
                raise CheckpointError(f"The tensor {ascii_name(name)} is in two weight files.", _REMEDY)
            placed[name] = target
            total += tensor.numel() * tensor.element_size()
        _write(staging / target, tensors)
        del tensors
        done += checkpoint.file_sizes[shard]
        if progress is not None:
            progress(done, checkpoint.weight_bytes)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        write_new(staging / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    if BIN_INDEX in checkpoint.file_sizes:
        _check_index(root, placed)
    for info in checkpoint.files:
        if info.name not in shards and info.name != BIN_INDEX:
            target_path = staging / info.name
            target_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / info.name, target_path)


def _check_index(root: Path, placed: dict[str, str]) -> None:
    index, _ = read_json(root, BIN_INDEX)
    missing = sorted(set(index["weight_map"]) - set(placed) - {"lm_head.weight"})
    if missing:
        raise CheckpointError(
            f"{BIN_INDEX} names the tensor {ascii_name(missing[0])}, which no weight file holds.",
            "Download the index and the weight files again.",
        )


def _load(path: Path, name: str) -> dict[str, Any]:
    """The tensors of one file, mapped rather than read where its format allows it."""
    import pickle

    import torch

    state: Any
    try:
        with reading(name):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 can't be mapped
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).split(". ")[0]
        raise CheckpointError(f"{name} cannot be read as plain tensors: {reason}", _REMEDY) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"{name} holds something other than a dictionary of named tensors.", _REMEDY)
    return dict(state)


def _drop_tied(tensors: dict[str, Any], tied: bool) -> dict[str, Any]:
    """Without `lm_head.weight` where the config ties it and it is, in memory, another tensor of the same file."""
    head = tensors.get("lm_head.weight")
    if not tied or head is None:
        return tensors
    alias = any(
        name != "lm_head.weight"
        and other.shape == head.shape
        and other.data_ptr() == head.data_ptr()
        and other.stride() == head.stride()
        for name, other in tensors.items()
    )
    return {name: tensor for name, tensor in tensors.items() if not (alias and name == "lm_head.weight")}


def _write(path: Path, tensors: dict[str, Any]) -> None:
    infos: list[TensorSpec] = []
    for name, tensor in tensors.items():
        dtype = _dtypes().get(tensor.dtype)
        if dtype is None or tensor.layout != _strided():
            raise UnsupportedError(
                f"The tensor {ascii_name(name)} has the dtype {tensor.dtype}, or is sparse.", _REMEDY
            )
        infos.append((name, dtype, tuple(tensor.shape)))
    write_safetensors_stream(path, infos, lambda name: _pieces(tensors[name]))


def _pieces(tensor: Any) -> Iterator[memoryview]:
    import torch

    if tensor.numel():
        yield memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _strided() -> Any:
    import torch

    return torch.strided


def _dtypes() -> dict[Any, str]:
    import torch

    names = {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
        "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
    }  # fmt: skip
    return {getattr(torch, name): dtype for name, dtype in names.items() if hasattr(torch, name)}
