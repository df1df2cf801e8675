"""Prove: recompute what an emitted config means, and compare with the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.errors import InternalError
from ctxforge.rope.geometry import text_config
from ctxforge.rope.lower import Lowered, readable_dialects, worst_difference
from ctxforge.rope.reader import read_rotations
from ctxforge.rope.types import RopePlan

TOLERANCE = 1e-6
_REMEDY = "nothing was written; please report this with the command and the config.json"


def prove(plan: RopePlan, lowered: Lowered, config: Mapping[str, Any]) -> dict[str, float]:
    """Compare the plan with `config`, which is what will be written, as each dialect that accepts it reads it.

    Returns:
        The largest relative difference in frequency over all tables, by dialect.

    Raises:
        InternalError: frequencies or temperatures differ by more than 1e-6, or a length is wrong.
    """
    model_type, inner = text_config(config)
    differences = {}
    for dialect in readable_dialects(inner, model_type):
        tables = read_rotations(inner, model_type, dialect)
        worst = 0.0
        for group in plan.groups:
            table = tables[group.layer_type]
            if group.rotation.length_dependent:
                dynamic = group.changed and group.rotation.code is None
                if dynamic and not table.rotation.length_dependent:
                    raise InternalError(f"{dialect} would read a static table where a dynamic one was planned", _REMEDY)
                continue
            worst = max(worst, worst_difference(table, group))
            emitted = table.rotation.temperature * lowered.folded[group.layer_type] ** 0.5
            if abs(emitted / group.rotation.temperature - 1) > TOLERANCE:
                raise InternalError(
                    f"{dialect} would use temperature {emitted:.8g}, planned was {group.rotation.temperature:.8g}",
                    _REMEDY,
                )
        if worst > TOLERANCE:
            raise InternalError(f"{dialect} would rotate with frequencies that differ by {worst:.3g}", _REMEDY)
        differences[dialect] = worst
    return differences
