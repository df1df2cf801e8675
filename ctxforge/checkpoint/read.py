"""Read a checkpoint wherever it is: a folder, a GGUF file, or a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from ctxforge.checkpoint.files import reading
from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.checkpoint.local import read_local
from ctxforge.checkpoint.types import Checkpoint, Progress
from ctxforge.errors import CheckpointError, UsageError

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>[^\s@]+))?", re.ASCII)


def read_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Read a checkpoint's configuration and tensor headers; no weights are opened or downloaded.

    Args:
        source: a folder, a `.gguf` file, or a Hub id `org/name` or `org/name@revision`. What exists on disk wins.
        revision: branch, tag or commit of a Hub source, instead of `@revision`.

    Raises:
        CheckpointError: the checkpoint is incomplete, malformed or inconsistent.
        UsageError: the source is neither there nor a Hub id, or it isn't a whole model.
        HubError: not found, gated, no network.
        ResourceError: a file can't be read.
        UnsupportedError: a format that can't be read from where it is.
    """
    text = str(source)
    if not text or "\0" in text:
        raise UsageError("The source is empty or not a path.", "Give a folder, a .gguf file or a Hub id (org/name).")
    path = Path(source).expanduser()
    if _exists(path, text):
        if revision is not None:
            raise UsageError(
                f"{text} is local, so it has no revision {ascii_name(revision)}.", "Leave the revision out."
            )
        return _read_path(path, text)
    match = _HUB_ID.fullmatch(text) if isinstance(source, str) else None
    if match is None:
        raise UsageError(
            f"There is no file or folder {ascii_name(text)}, and it is not a Hub id either.",
            "Check the path, or give a Hub id such as meta-llama/Llama-2-7b-hf or org/name@revision.",
        )
    if match["revision"] and revision and match["revision"] != revision:
        raise UsageError(
            f"{text} names the revision {match['revision']}, the option names {ascii_name(revision)}.",
            "Give only one of them.",
        )
    from ctxforge.checkpoint.hub import read_hub

    return read_hub(match["repo"], revision or match["revision"])


def _exists(path: Path, text: str) -> bool:
    """Whether the path is there; a link loop or a forbidden folder is an error of its own, not an absence."""
    try:
        with reading(text):
            path.stat()
    except CheckpointError:
        if path.is_symlink():
            raise
        return False
    return True


def _read_path(path: Path, text: str) -> Checkpoint:
    if path.is_dir():
        return read_local(path, source=text)
    if path.is_file() and path.suffix.lower() == ".gguf":
        from ctxforge.checkpoint.gguf import read_gguf

        return read_gguf(path, source=text)
    raise UsageError(
        f"{text} is not a checkpoint folder or a .gguf file.", "Give the folder that holds config.json and the weights."
    )


def fetch(checkpoint: Checkpoint, progress: Progress | None = None) -> Checkpoint:
    """Make a checkpoint local and safetensors, so that it can be converted; does nothing where it is already.

    A Hub source is downloaded at its pinned commit into the Hugging Face cache. GGUF and `.bin` weights are converted
    once into a cache folder keyed by their content (`$CTXFORGE_CACHE/imports`, by default below `~/.cache/ctxforge`).

    Args:
        checkpoint: what `read_checkpoint` gave.
        progress: called with the bytes done and the bytes in total, while weights are converted.

    Raises:
        HubError: the download failed.
        CheckpointError: `.bin` files that hold something other than tensors, or a damaged GGUF file.
        UnsupportedError: a GGUF architecture or a dtype that can't be imported.
        ResourceError: no space or no permission for the cache.
    """
    if checkpoint.root is None:
        from ctxforge.checkpoint.hub import download

        checkpoint = download(checkpoint)
    if checkpoint.weights == "safetensors":
        return checkpoint
    if checkpoint.weights == "gguf":
        from ctxforge.checkpoint.gguf import import_gguf

        return import_gguf(checkpoint, progress)
    from ctxforge.checkpoint.bins import import_bins

    return import_bins(checkpoint, progress)
