"""Giving a lowered conversion an attention system: the config, the files and the notes of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctxforge.attention.registry import find_attachment, read_parameters
from ctxforge.attention.types import Attachment, Situation
from ctxforge.errors import UnsupportedError
from ctxforge.recipe import AttachmentChoice
from ctxforge.rope import Lowered, RopeGeometry, RopePlan, custom_code
from ctxforge.rope.types import CustomCode


@dataclass(frozen=True)
class Attached:
    """An attachment with the parameters that a checkpoint carries.

    Attributes:
        name: of the attachment.
        parameters: as the modeling file reads them.
        plain: whether the architecture's own config expresses it, without custom code.
    """

    name: str
    parameters: dict[str, Any]
    plain: bool = False


def attach(
    choice: AttachmentChoice,
    lowered: Lowered,
    plan: RopePlan,
    geometry: RopeGeometry,
    config: Mapping[str, Any],
) -> tuple[Lowered, Attached]:
    """`lowered` with the attention system that was chosen.

    Args:
        choice: name and parameters.
        lowered: the RoPE method's own edits.
        plan: of the method.
        geometry: of the source.
        config: the source's config.json.

    Raises:
        UsageError: an unknown attachment or parameter, or values that do not fit each other or the lengths.
        UnsupportedError: a method or an architecture that the system cannot be combined with, or a training-time one.
    """
    found = find_attachment(choice.name)
    if not found.exported:
        raise UnsupportedError(
            f"{found.name} is for training: the model that comes of it attends in full and stays plain",
            "calibrate with it instead (ctxforge calibrate)",
        )
    if any(group.rotation.code is not None for group in plan.groups):
        raise UnsupportedError(
            f"{found.name} and {plan.method} both bring attention code of their own",
            "choose a static method, or leave --attach out",
        )
    if len(geometry.groups) != 1:
        raise UnsupportedError(
            f"{found.name} serves one rotary table, this model has {len(geometry.groups)}", "leave --attach out"
        )
    parameters = found.resolve(read_parameters(found, choice.parameters), situation(plan, geometry, config))
    keys = found.plain(lowered.config, parameters) if found.plain is not None else None
    if keys is not None:
        notes = (*lowered.notes, f"{found.name} is in the config's own keys: {', '.join(keys)}")
        plain = replace(lowered, config={**lowered.config, **keys}, notes=notes)
        return plain, Attached(found.name, parameters, plain=True)
    if not found.system:
        raise UnsupportedError(
            f"{geometry.model_type} has no config keys for {found.name}", "see ctxforge attachments for another"
        )
    code = CustomCode(found.system, parameters)
    whole, files, notes = custom_code.attach(code, custom_code.detach(lowered.config), geometry)
    done = replace(
        lowered, config=whole, files={**lowered.files, **files}, notes=tuple(dict.fromkeys((*lowered.notes, *notes)))
    )
    return done, Attached(found.name, parameters)


def situation(plan: RopePlan, geometry: RopeGeometry, config: Mapping[str, Any]) -> Situation:
    """What an attachment may depend on."""
    inner = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(inner, Mapping)
    return Situation(
        trained_length=plan.original_length,
        target_length=plan.target_length,
        heads=int(inner.get("num_attention_heads") or inner.get("n_head") or 0),
        layers=int(inner.get("num_hidden_layers") or inner.get("n_layer") or 0),
        model_type=geometry.model_type,
        static=not any(group.rotation.length_dependent for group in plan.groups),
        method=plan.method,
    )


def refuse_attached(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a source that carries an attachment already."""
    found = custom_code.find_attachment(config)
    if found is not None:
        raise UnsupportedError(
            f"this checkpoint has the attachment {found.name} already, and another conversion would lose it",
            "convert the checkpoint it was made from",
        )


def describe(attachment: Attachment) -> dict[str, Any]:
    """Everything about an attachment that a user may want to know, as plain data."""
    return {
        "name": attachment.name,
        "title": attachment.title,
        "reference": attachment.reference,
        "summary": attachment.summary,
        "can": list(attachment.can),
        "cannot": list(attachment.cannot),
        "needs": attachment.needs,
        "cost": attachment.cost,
        "engines": attachment.engines,
        "exported": attachment.exported,
        "parameters": [
            {"name": p.name, "kind": p.kind, "default": p.default, "explanation": p.explanation}
            for p in attachment.parameters
        ],
    }
