"""The same model under other spellings of its config: published checkpoints are not all written by transformers 5."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

SPELLINGS = ("another base", "legacy keys", "silent")
_FACTOR = 1.5


def respelled(config: Mapping[str, Any], spelling: str) -> dict[str, Any] | None:
    """`config` with its rope dicts, wherever they stand, written otherwise; None where that can't be done.

    `another base` multiplies each base by 1.5; `legacy keys` does so and moves base, fraction and scaling of flat
    dicts to the top level, as transformers 4 wrote them; `silent` leaves the dicts out.
    """
    result = copy.deepcopy(dict(config))
    changed = [_respell(part, spelling) for part in _holders(result)]
    return result if changed and all(changed) else None


def _holders(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The text model's part of a config, where its rope dict stands."""
    inner = config.get("text_config")
    part = inner if isinstance(inner, dict) else config
    return [part] if isinstance(part.get("rope_parameters"), dict) else []


def _respell(part: dict[str, Any], spelling: str) -> bool:
    rope = part["rope_parameters"]
    flat = "rope_type" in rope
    if spelling == "silent":
        del part["rope_parameters"]
        return flat and rope["rope_type"] == "default"
    for table in [rope] if flat else rope.values():
        if isinstance(table, dict) and "rope_theta" in table:
            table["rope_theta"] *= _FACTOR
    if spelling == "another base":
        return True
    if not flat:
        return False
    del part["rope_parameters"]
    part["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        part["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope["rope_type"] != "default" or len(rope) > 1:
        part["rope_scaling"] = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    return True
