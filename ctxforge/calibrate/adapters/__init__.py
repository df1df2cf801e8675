"""What a calibration trains, and how that comes into the checkpoint: LoRA, rsLoRA, whole tensors, an exact merge.

`attach` finds the modules by their role and makes them trainable; `save_adapter` and `restore_adapter` keep the state;
`merge` writes the finished checkpoint from the base's own bytes. Merging needs numpy alone; torch, transformers and
peft are imported by `attach`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ctxforge.calibrate.adapters.recipe import ROLES, AdapterRecipe, Role, named_recipe

if TYPE_CHECKING:
    from ctxforge.calibrate.adapters.attaching import LowRank, Trained, Whole, attach
    from ctxforge.calibrate.adapters.digest import weights_digest
    from ctxforge.calibrate.adapters.files import Adapter, Entry, read_adapter
    from ctxforge.calibrate.adapters.merging import merge
    from ctxforge.calibrate.adapters.record import MergedTensor, MergeRecord
    from ctxforge.calibrate.adapters.roles import Roles, find_roles
    from ctxforge.calibrate.adapters.state import restore_adapter, save_adapter

_HOMES = {
    "LowRank": "attaching",
    "Trained": "attaching",
    "Whole": "attaching",
    "attach": "attaching",
    "weights_digest": "digest",
    "Adapter": "files",
    "Entry": "files",
    "read_adapter": "files",
    "merge": "merging",
    "MergeRecord": "record",
    "MergedTensor": "record",
    "Roles": "roles",
    "find_roles": "roles",
    "restore_adapter": "state",
    "save_adapter": "state",
}

__all__ = [
    "ROLES",
    "Adapter",
    "AdapterRecipe",
    "Entry",
    "LowRank",
    "MergeRecord",
    "MergedTensor",
    "Role",
    "Roles",
    "Trained",
    "Whole",
    "attach",
    "find_roles",
    "merge",
    "named_recipe",
    "read_adapter",
    "restore_adapter",
    "save_adapter",
    "weights_digest",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: half of them need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
