"""Import a GGUF file through transformers: its configuration to look at it, its weights once into a cache folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctxforge.checkpoint.cache import any_import, find_import, imported
from ctxforge.checkpoint.files import file_sha256, open_regular, pread_exact, reading
from ctxforge.checkpoint.jsonio import parse_json_object
from ctxforge.checkpoint.layout import CONFIG
from ctxforge.checkpoint.local import read_json, read_local
from ctxforge.checkpoint.types import Checkpoint, FileInfo, Progress
from ctxforge.errors import CheckpointError, CtxforgeError, ResourceError, UnsupportedError, UsageError
from ctxforge.quiet import quiet_transformers

_LIBRARY_REMEDY = 'Install the extra: pip install "ctxforge-llm[gguf]".'


def read_gguf(path: Path, *, source: str) -> Checkpoint:
    """Look at a GGUF file: the configuration that transformers derives from its metadata. No weights are read.

    Args:
        path: the file.
        source: how the user named it.

    Raises:
        CheckpointError: not a GGUF file, or a damaged one.
        UnsupportedError: transformers can't import this architecture.
        UsageError: the gguf package isn't installed.
    """
    name = path.name
    with open_regular(path, name) as file:
        start = pread_exact(file, 8, 0, name) if path.stat().st_size >= 8 else b""
    if start[:4] != b"GGUF":
        raise CheckpointError(f"{name} is not a GGUF file.", "Download or copy this file again.")
    version = int.from_bytes(start[4:8], "little")
    if version not in (2, 3):
        raise UnsupportedError(f"{name} is GGUF version {version}; 2 and 3 can be read.", "Convert the file again.")
    config, text = _config(path)
    return Checkpoint(
        source=source,
        root=path.parent,
        revision=None,
        weights="gguf",
        config=config,
        config_text=text,
        tensors={},
        files=(FileInfo(name, path.stat().st_size),),
        json_files={},
        weight_files=(name,),
    )


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """The config.json of the file's import where there is one already, else what transformers makes of its metadata."""
    if any_import():
        folder = find_import(file_sha256(path))
        if folder is not None:
            return read_json(folder, CONFIG)
    with reading(path.name), _library_errors(path.name):
        from transformers import AutoConfig

        with quiet_transformers(warnings=False):
            config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
        text = str(config.to_json_string())
    return parse_json_object(text.encode(), path.name, bounded_ints=False)


@contextmanager
def _library_errors(name: str) -> Iterator[None]:
    """Turn what transformers, gguf and safetensors raise about the file `name` into errors with a remedy."""
    try:
        yield
    except CtxforgeError:
        raise
    except ImportError as error:
        raise UsageError("Reading GGUF needs the gguf package.", _LIBRARY_REMEDY) from error
    except MemoryError as error:
        raise ResourceError(f"Not enough memory to import {name}.", "Use a machine with more memory.") from error
    except Exception as error:
        if "os error 28" in str(error):  # how safetensors, written in Rust, says that the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnsupportedError(
            f"transformers cannot import {name}: {type(error).__name__}: {error}",
            "Use the original checkpoint in transformers layout.",
        ) from error


def import_gguf(checkpoint: Checkpoint, progress: Progress | None) -> Checkpoint:
    """Convert a GGUF file to a bfloat16 safetensors folder in the cache, or find the one made earlier.

    Dequantisation holds the whole model in memory, as transformers does it.

    Raises:
        UnsupportedError: transformers can't import it.
        ResourceError: no space for the cache.
    """
    assert checkpoint.root is not None
    name = checkpoint.weight_files[0]
    path = checkpoint.root / name

    def make(folder: Path) -> None:
        with _library_errors(name):
            _convert(path, folder)
        if progress is not None:
            progress(checkpoint.weight_bytes, checkpoint.weight_bytes)

    folder = imported(file_sha256(path), make, needed=4 * checkpoint.weight_bytes)
    return read_local(folder, source=checkpoint.source)


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers(warnings=False):
        model: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.bfloat16)
        # save_pretrained refuses a model that still calls itself quantised, though the weights are plain by now.
        for owner, attribute in (
            (model.config, "quantization_config"),
            (model, "hf_quantizer"),
            (model, "is_quantized"),
            (model, "quantization_method"),
        ):
            if hasattr(owner, attribute):
                try:
                    delattr(owner, attribute)
                except AttributeError:
                    setattr(owner, attribute, None)
        model.save_pretrained(str(folder), max_shard_size="4GB")
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(str(folder))
