"""ALiBi: scale the slopes, by a modeling file that the checkpoint carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctxforge.errors import CheckpointError, InternalError, UnsupportedError, UsageError
from ctxforge.positions.alibi_architectures import ALIBI, AlibiModel
from ctxforge.positions.target import MAX_TARGET, check_target
from ctxforge.positions.types import PositionGeometry, PositionPlan
from ctxforge.rope import fields
from ctxforge.rope.custom_code import base_model_type, detach, find_code, wrap
from ctxforge.rope.lower import Lowered
from ctxforge.rope.types import CustomCode

if TYPE_CHECKING:
    from ctxforge.checkpoint import TensorInfo
    from ctxforge.rope.methods import Method

_MAX_LAYERS = 4096
_REPORT = "nothing was written; please report this with the command and the config.json"
_KINDS = {"rope": "rotary positions (RoPE)", "learned": "a table of learned positions"}


def understand(config: Mapping[str, Any], *, trained_length: int | None = None) -> PositionGeometry:
    """The ALiBi of a model with this config, and the length that its slopes were trained at.

    Raises:
        CheckpointError: a value is malformed or out of range.
        UnsupportedError: a variant that transformers does not compute.
        UsageError: a trained length that is none.
    """
    model_type = str(base_model_type(config))
    row = ALIBI[model_type]
    _refuse_variants(config, row)
    key, stated = _first(config, row.length_keys, row.default_length, MAX_TARGET)
    said = "not in the config; the published models were trained at" if key is None else f"{key} says"
    evidence, original, code = f"{said} {stated}", stated, find_code(config)
    if code is not None:
        original = fields.integer(code.parameters, "original_length", None, high=MAX_TARGET)
        evidence = f"{evidence}; its slopes are scaled from {original} already"
    if trained_length is not None:
        if not 1 < trained_length < MAX_TARGET:
            raise UsageError(f"a trained length of {trained_length} tokens is not usable", "give it in tokens")
        stated, evidence = trained_length, "given by the user"
        original = original if code is not None else trained_length
    return PositionGeometry(
        model_type=model_type,
        scheme="alibi",
        layers=_first(config, row.layers_keys, row.default_layers, _MAX_LAYERS)[1],
        heads=_first(config, row.heads_keys, row.default_heads, 2**16)[1],
        max_position_embeddings=stated,
        original_length=original,
        trained_length=stated,
        evidence=evidence,
    )


def _first(config: Mapping[str, Any], keys: Sequence[str], default: int | None, high: int) -> tuple[str | None, int]:
    """The first of `keys` that the config has, and its number; None and the default where it has none."""
    for key in keys:
        if config.get(key) is not None:
            return key, fields.integer(config, key, None, high=high)
    if default is None:
        raise CheckpointError(f"config.json has no {keys[0]}", "repair config.json")
    return None, default


def _refuse_variants(config: Mapping[str, Any], row: AlibiModel) -> None:
    table = fields.table(config, row.table) if row.table is not None else None
    for key, wanted in row.required:
        found = (table or {}).get(key)
        if found is not None and found != wanted:
            raise UnsupportedError(
                f"{row.table}.{key} is {found!r}, and transformers computes with {wanted!r} whatever it says",
                "such a model cannot be converted for transformers",
            )


def make_plan(
    geometry: PositionGeometry,
    method: Method,
    target_length: int | None,
    *,
    parameters: Mapping[str, object] | None = None,
    temperature: float | None = None,
    original_length: int | None = None,
) -> PositionPlan:
    """Scale the slopes by L0/L'; see `ctxforge.positions.make_plan`."""
    resolved = dataclasses.asdict(method.build_parameters(parameters or {}))
    start = original_length if original_length is not None else geometry.trained_length
    assert start is not None
    if not 1 < start < MAX_TARGET:
        raise UsageError(f"an original length of {start} tokens is not usable", "give --original-length in tokens")
    if method.name == "none":
        longest = target_length or geometry.max_position_embeddings
        return PositionPlan("none", resolved, start, longest, longest / start, ())
    if method.scheme != "alibi":
        raise UnsupportedError(
            f"{method.name} changes {_KINDS.get(method.scheme, method.scheme)}, and {geometry.model_type} has ALiBi",
            "use --method alibi-interpolation",
        )
    if temperature is not None:
        raise UsageError("ALiBi's slopes have no temperature to set", "leave --temperature out")
    target = check_target(target_length, start)
    lines = []
    if target / start > 2:
        lines.append("published results reach twice the trained length without a fine-tune (2310.13017), not more")
    if not resolved["dynamic"]:
        lines.append(
            "static slopes flatten the bias of short prompts too; --param dynamic=true leaves them as they were"
        )
    if geometry.original_length is not None and geometry.original_length < start:
        lines.append(f"the slopes were already scaled from {geometry.original_length} tokens: the factors multiply")
    return PositionPlan(method.name, resolved, start, target, target / start, tuple(lines))


def lower(
    plan: PositionPlan, geometry: PositionGeometry, config: Mapping[str, Any], _tensors: Mapping[str, TensorInfo]
) -> Lowered:
    """The config and modeling files that scale the slopes; no weight changes. See `ctxforge.positions.lower`."""
    if not plan.changed:
        return Lowered(dict(config), (), {}, ())
    row = ALIBI[geometry.model_type]
    composed = plan.original_length == geometry.trained_length and geometry.original_length is not None
    first_length = geometry.original_length if composed else plan.original_length
    assert first_length is not None
    code = CustomCode(
        "alibi",
        {
            "factor": first_length / plan.target_length,
            "dynamic": plan.parameters["dynamic"],
            "original_length": first_length,
        },
    )
    stock = detach(config)
    present = [key for key in row.length_keys if stock.get(key) is not None] or [row.length_keys[0]]
    lengthened = {**stock, **dict.fromkeys(present, plan.target_length)}
    changed, files, notes = wrap(code, lengthened, geometry.model_type, row.class_prefix, {})
    return Lowered(changed, (), {}, notes, files)


def prove(plan: PositionPlan, lowered: Lowered, config: Mapping[str, Any]) -> dict[str, float]:
    """Read the factor and the lengths back from `config`.

    Returns:
        How far the bias at the target length is from the one at the first trained length, relative.

    Raises:
        InternalError: the config, the files or the weights are not what the plan says.
    """
    if not plan.changed:
        return {}
    code, row = find_code(config), ALIBI[str(base_model_type(config))]
    if code is None or code.name != "alibi" or lowered.tensors:
        raise InternalError("the emitted config does not scale ALiBi's slopes", _REPORT)
    module = str(config["auto_map"]["AutoModelForCausalLM"]).split(".")[0]
    if f"{module}.py" not in lowered.files:
        raise InternalError(f"the emitted folder would lack {module}.py", _REPORT)
    if any(config.get(key) not in (None, plan.target_length) for key in row.length_keys):
        raise InternalError(f"the emitted config does not say {plan.target_length} tokens", _REPORT)
    first_length = fields.real(code.parameters, "original_length", None)
    difference = abs(fields.real(code.parameters, "factor", None) * plan.target_length / first_length - 1)
    if difference > 1e-9 or first_length > plan.original_length:
        raise InternalError(f"the slopes would be scaled wrongly, by {difference:.3g}", _REPORT)
    return {"slopes": difference}
