"""From changed files, such as those of a commit, to the checkpoint folders that they lie in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctxforge.checkpoint.layout import CONFIG, INDEX, SINGLE


def folders_of(files: Iterable[str]) -> tuple[str, ...]:
    """The checkpoint folders that hold these files, each once, in order of name.

    A checkpoint folder has a config.json with a model type, or weights; the innermost one counts. Files in no such
    folder are left out, whether or not they exist.
    """
    found = set()
    for file in files:
        folder = next((parent for parent in Path(file).parents if _is_checkpoint(parent)), None)
        if folder is not None:
            found.add(str(folder))
    return tuple(sorted(found))


def _is_checkpoint(folder: Path) -> bool:
    if any((folder / name).is_file() for name in (INDEX, SINGLE)):
        return True
    try:
        return '"model_type"' in (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
