"""Giving a lowered conversion an attention system: the config, the files and the notes of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctxforge.attention.registry import attachments, find_attachment, read_parameters
from ctxforge.attention.types import Attachment, Situation
from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.recipe import AttachmentChoice
from ctxforge.rope import Lowered, RopeGeometry, RopePlan, custom_code
from ctxforge.rope.architectures.mla import MLA
from ctxforge.rope.types import CustomCode

# Types with RoPE that transformers 5.24 has outside its attention interface (tests/attention/test_bad_input.py).
OUTSIDE_THE_INTERFACE = frozenset({"falcon", "gpt_neox_japanese"})


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
        UsageError: an unknown attachment or parameter, values that do not fit each other or the lengths, or a target
            below the length that the model works at.
        UnsupportedError: a method or a model that the system cannot be combined with, or a training-time system.
    """
    found = find_attachment(choice.name)
    if not found.exported:
        raise UnsupportedError(
            f"{found.name} is for training: the model that comes of it attends in full and stays plain",
            "leave --attach out, and train in ctxforge.attention.shifted_sparse.shifted_sparse_attention(model, group)",
        )
    _refuse_methods(found.name, plan, config)
    _refuse_models(found, geometry, config)
    where = situation(plan, geometry, config)
    if where.target_length < where.trained_length:
        raise UsageError(
            f"a target of {where.target_length} tokens is below the {where.trained_length} that the model works at",
            f"leave --to out, or give more; how far {found.name} looks back is its own parameter (ctxforge attachments"
            f" {found.name})",
        )
    if found.system and not where.static:
        own = where.method == "none"
        raise UnsupportedError(
            f"{found.name} rotates with one table, and that of {'the model' if own else where.method} stretches with"
            " the length",
            "start over from the trained length with a static method: --method yarn --original-length N"
            if own
            else "choose a static method, such as yarn, or leave --method out",
        )
    parameters = found.resolve(read_parameters(found, choice.parameters), where)
    keys = found.plain(lowered.config, parameters) if found.plain is not None else None
    if keys is not None:
        notes = (*lowered.notes, f"{found.name} is in the config's own keys: {', '.join(keys)}")
        plain = replace(lowered, config={**lowered.config, **keys}, notes=notes)
        return plain, Attached(found.name, parameters, plain=True)
    assert found.system, f"{found.name} neither has code nor says which config it is in"
    code = CustomCode(found.system, parameters)
    whole, files, notes = custom_code.attach(code, _with_base(custom_code.detach(lowered.config)), geometry)
    done = replace(
        lowered, config=whole, files={**lowered.files, **files}, notes=tuple(dict.fromkeys((*lowered.notes, *notes)))
    )
    return done, Attached(found.name, parameters)


def _with_base(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that only transformers 5 reads right, of a plain rotation: with the base where older readers look."""
    modern = config.get("rope_parameters")
    plain = isinstance(modern, Mapping) and modern.get("rope_type", "default") == "default" and "rope_theta" in modern
    if not plain or "rope_theta" in config or "rope_scaling" in config:
        return dict(config)
    assert isinstance(modern, Mapping)
    return {**config, "rope_theta": modern["rope_theta"]}


def _refuse_methods(name: str, plan: RopePlan, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError where the rotation is code already."""
    if all(group.rotation.code is None for group in plan.groups):
        return
    carried = custom_code.find_code(config)
    if carried is not None:
        raise UnsupportedError(
            f"this checkpoint rotates by modeling code already ({carried.name.replace('_', '-')}), which {name} would"
            " replace",
            "convert the checkpoint that it was made from",
        )
    raise UnsupportedError(
        f"{name} and {plan.method} both bring attention code of their own",
        "choose a static method, such as yarn, or leave --attach out",
    )


def _refuse_models(found: Attachment, geometry: RopeGeometry, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a model that the runtime cannot take over, with the reason."""
    if len(geometry.groups) != 1:
        raise UnsupportedError(
            f"{found.name} serves one rotary table, {geometry.model_type} has {len(geometry.groups)}",
            "leave --attach out: a RoPE method alone serves it (--method yarn)",
        )
    if not found.system:
        return
    named = config.get("auto_map")
    own = (
        [key for key in named if str(key).startswith(("AutoModel", "AutoConfig"))] if isinstance(named, Mapping) else []
    )
    if own and custom_code.KEY not in config:
        assert isinstance(named, Mapping)
        raise UnsupportedError(
            f"this checkpoint brings modeling code of its own ({named[own[0]]}), which {found.name} would replace by"
            " transformers' class",
            "if that class computes the same, remove auto_map from the source's config.json and convert again",
        )
    model_type = geometry.model_type
    if model_type in custom_code.SERVED and not geometry.config_path:
        return
    if geometry.config_path:
        raise UnsupportedError(
            f"{found.name} serves language models, and {model_type} holds one in {'.'.join(geometry.config_path)}",
            "convert the language model's own checkpoint, or leave --attach out",
        )
    reason = "no test holds it to its stock model there"
    if model_type in OUTSIDE_THE_INTERFACE:
        reason = "its attention is outside transformers' attention interface"
    elif model_type in MLA:
        reason = "its keys are compressed (MLA), and a slice of them alone is rotated"
    raise UnsupportedError(
        f"{found.name} runs in modeling code, which does not serve {model_type}: {reason}",
        "leave --attach out: a RoPE method alone may serve it (--method yarn); docs/attention.md lists the types that"
        " attachments serve",
    )


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
        names = " or ".join(name for name, one in attachments().items() if one.system == found.name)
        raise UnsupportedError(
            f"this checkpoint has an attachment already ({names}), and another conversion would lose it",
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
