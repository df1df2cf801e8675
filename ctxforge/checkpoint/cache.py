"""Folders of imported weights, made once and found again by the content they came from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ctxforge.checkpoint.files import human_bytes
from ctxforge.checkpoint.staging import FILE_MODE, commit, free_bytes, locked, staged, sync_tree, writing
from ctxforge.errors import ResourceError


def cache_root() -> Path:
    """Where imports are kept: `$CTXFORGE_CACHE`, else `ctxforge` below `$XDG_CACHE_HOME` or `~/.cache`."""
    chosen = os.environ.get("CTXFORGE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ctxforge"


def any_import() -> bool:
    """Whether anything was imported yet, so that hashing a large file to look for it is worth while."""
    try:
        return any(not path.name.startswith(".") for path in (cache_root() / "imports").iterdir())
    except OSError:
        return False


def find_import(key: str) -> Path | None:
    """The finished import of the content with this digest; None where there is none."""
    out = cache_root() / "imports" / key
    try:
        return out if out.is_dir() else None
    except OSError:  # a folder above it can't be entered
        return None


def imported(key: str, make: Callable[[Path], None], needed: int) -> Path:
    """The import folder for `key`, made by `make` in a staging folder where it doesn't exist yet.

    Args:
        key: hex digest of the content that is imported.
        make: fills the folder it is given.
        needed: roughly how many bytes it will write, to fail early on a full disk.

    Raises:
        ResourceError: no space, no permission, or another run is importing the same file.
    """
    found = find_import(key)
    if found is not None:
        return found
    out = cache_root() / "imports" / key
    with writing(out.parent, needed):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = free_bytes(out.parent)
    if free is not None and free < needed:
        raise ResourceError(
            f"The import needs {human_bytes(needed)} in {out.parent}, but {human_bytes(free)} are free.",
            "Free some space, or set CTXFORGE_CACHE to a folder on another disk.",
        )
    with locked(out):
        if out.is_dir():
            return out
        with staged(out, needed) as staging:
            make(staging)
            _public(staging)
            sync_tree(staging)
            commit(staging, out)
    return out


def _public(folder: Path) -> None:
    """Give every file the ordinary mode: the safetensors library leaves its files at 0600."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(FILE_MODE & ~umask)
