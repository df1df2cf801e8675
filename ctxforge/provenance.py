"""`ctxforge.json`: what a converted checkpoint says about how it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctxforge.positions.types import PositionGeometry
from ctxforge.version import __version__

if TYPE_CHECKING:
    from ctxforge.pipeline import Conversion
    from ctxforge.schemes import Plan

FILE_NAME = "ctxforge.json"
SCHEMA_VERSION = 1
DISTRIBUTION = "ctxforge-llm"


def record(conversion: Conversion, sha256: Mapping[str, str], tensor_sha256: Mapping[str, str]) -> bytes:
    """The provenance document of a conversion, JSON, the same bytes for the same input and versions.

    Holds the tool's and Python's versions, the source with its revision and config hash, the recipe, the plan with
    lambda and a of each rotary table, the weight edits, the hashes of the files written and of the tensors edited, and
    the source's own provenance when it was a ctxforge output itself.
    """
    checkpoint = conversion.checkpoint
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": DISTRIBUTION, "version": __version__, "python": platform.python_version()},
        "source": {
            "name": conversion.recipe.source,
            "revision": checkpoint.revision,
            "weights": checkpoint.weights,
            "config_sha256": hashlib.sha256(checkpoint.config_text.encode()).hexdigest(),
        },
        "recipe": dataclasses.asdict(conversion.recipe),
        "plan": plan_document(conversion),
        "files": dict(sorted(sha256.items())),
        "edited_tensors": dict(sorted(tensor_sha256.items())),
    }
    earlier = checkpoint.json_files.get(FILE_NAME)
    if earlier is not None:
        document["previous"] = dict(earlier)
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def plan_document(conversion: Conversion) -> dict[str, Any]:
    """The plan as plain data: lengths, lambda and a of each table, how it was expressed, and what the weights carry."""
    plan, lowered, geometry = conversion.plan, conversion.lowered, conversion.geometry
    return {
        "scheme": geometry.scheme if isinstance(geometry, PositionGeometry) else "rope",
        "method": plan.method,
        "parameters": dict(plan.parameters),
        "original_length": plan.original_length,
        "target_length": plan.target_length,
        "scale": plan.scale,
        "composed": plan.composed,
        "tables": tables_document(plan, lowered.folded),
        "portability": conversion.recipe.portability,
        "expressed_as": list(lowered.notes),
        "attachment": None if conversion.attached is None else dataclasses.asdict(conversion.attached),
        "tensors_edited": [edit.tensor for edit in lowered.tensors],
        "agreement": dict(conversion.agreement),
        "warnings": list(plan.warnings),
    }


def tables_document(plan: Plan, folded: Mapping[str | None, float]) -> list[dict[str, Any]]:
    """Each rotary table of a plan as plain data; `folded` is the factor on q.k that the weights carry."""
    return [
        {
            "layer_type": group.layer_type,
            "layers": list(group.layers),
            "rotated_dims": group.rotated_dims,
            "base": group.base,
            "changed": group.changed,
            "temperature": group.rotation.temperature,
            "folded_into_weights": folded.get(group.layer_type, 1.0),
            "length_dependent": group.rotation.length_dependent,
            "divisors": list(group.rotation.divisors),
        }
        for group in plan.groups
    ]


def recorded_target(document: Mapping[str, Any] | None) -> int | None:
    """The target length that an earlier conversion recorded; None when the document is absent or malformed."""
    if document is None:
        return None
    plan = document.get("plan")
    target = plan.get("target_length") if isinstance(plan, Mapping) else None
    usable = isinstance(target, int) and not isinstance(target, bool) and 1 < target < 2**40
    return target if usable else None
