"""The small JSON files of a checkpoint as texts, and faults that point into them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import CtxforgeError
from ctxforge.rope.geometry import find_architecture
from ctxforge.static_checks.locate import Path, find_key
from ctxforge.static_checks.types import Fault

CONFIG = "config.json"
ROPE_KEYS = ("rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings", "model_type")


def fault(checkpoint: Checkpoint, file: str, words: str, *paths: Path) -> Fault:
    """A fault in `file` at the first of `paths` that the file has; at the whole file where it has none of them."""
    text = checkpoint.config_text if file == CONFIG else checkpoint.json_texts.get(file, "")
    for path in paths:
        place = find_key(text, path)
        if place is not None:
            return Fault(words, file, *place)
    return Fault(words, file)


def text_prefix(config: Mapping[str, Any]) -> Path:
    """The keys that lead to the text model's part of the config; none where the architecture is unknown."""
    try:
        return find_architecture(config)[1].config_path
    except CtxforgeError:
        return ()


def rope_paths(config: Mapping[str, Any]) -> tuple[Path, ...]:
    """The keys that say what the rotation is, the likeliest first."""
    prefix = text_prefix(config)
    return tuple((*prefix, key) for key in ROPE_KEYS)


def named_paths(config: Mapping[str, Any], words: str) -> tuple[Path, ...]:
    """The keys of the config that `words` names, the innermost first, then those of the rotation."""
    said = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]+", words))
    found: list[Path] = []
    stack: list[tuple[Path, Mapping[str, Any]]] = [((), config)]
    while stack:
        path, holder = stack.pop()
        for key, value in holder.items():
            if key in said and key != "model_type":
                found.append((*path, key))
            if isinstance(value, Mapping):
                stack.append(((*path, key), value))
    found.sort(key=len, reverse=True)
    model_type: tuple[Path, ...] = (("model_type",),) if "model type" in words else ()
    return (*model_type, *found, *rope_paths(config))
