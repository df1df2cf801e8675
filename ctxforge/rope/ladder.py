"""The ladder of forms that a rotation can be written as, by how far the result must reach.

- `widest`: as many engines as possible compute the plan. Temperatures that engines disagree on are kept out of the
  config and folded into the query weights (vLLM, SGLang, llama.cpp, TGI and mlx-lm each read another set of
  temperature keys).
- `exact`: no weight is touched, so no weight is rounded. The temperature stands in keys, in every spelling that some
  engine reads; engines that read none use their default.
- `transformers`: transformers alone matters (5.x, and 4.x where it reads the type at all): its own types,
  `proportional` included, weights untouched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

from ctxforge.checkpoint import ScaleRows, TensorInfo
from ctxforge.errors import UsageError
from ctxforge.rope.reader import ORIGINAL_KEY
from ctxforge.rope.types import UNROTATED, GroupPlan, RopeForm, RopePlan

Portability = Literal["widest", "exact", "transformers"]
PORTABILITIES: tuple[Portability, ...] = get_args(Portability)
_ROUNDING = {"BF16": "2^-9", "F16": "2^-12", "F32": "2^-24", "F64": "2^-53"}
Entries = dict[str, float | int | bool | list[float]]


def parse_portability(text: str) -> Portability:
    """`text` as a portability.

    Raises:
        UsageError: it is none.
    """
    for name in PORTABILITIES:
        if text == name:
            return name
    raise UsageError(f"unknown portability {text!r}", f"choose one of: {', '.join(PORTABILITIES)}")


def candidates(plan: RopePlan, group: GroupPlan, portability: Portability) -> Iterator[tuple[RopeForm, float]]:
    """Forms and bases to try, best first. Not all of them express the rotation: the caller reads each one back."""
    rotation = group.rotation
    divisors = rotation.divisors
    hint = rotation.form
    if hint is not None:
        base = hint.parameters.get("rope_theta", group.base)
        assert isinstance(base, int | float)
        if portability != "widest" and hint.type == "yarn":
            yield _yarn_with_temperature(hint, rotation.temperature, plan.scale), float(base)
        if (hint.type != "proportional" or portability == "transformers") and not _narrow(hint, portability):
            yield hint, float(base)
    if rotation.length_dependent and rotation.code is None:
        return
    if all(divisor == 1.0 for divisor in divisors):
        yield RopeForm("default"), group.base
    if max(divisors) == min(divisors) and max(divisors) < UNROTATED:
        yield RopeForm("linear", {"factor": divisors[0]}), group.base
    if len(divisors) > 1 and divisors[1] < UNROTATED:
        yield RopeForm("default"), group.base * divisors[1] ** (group.rotated_dims / 2)
    lists = _lists(plan, divisors, None if portability == "widest" else rotation.temperature, portability)
    proportional = _proportional(divisors, group)
    ordered = (
        (*proportional, (lists, group.base)) if portability == "transformers" else ((lists, group.base), *proportional)
    )
    yield from ordered
    if hint is not None and _narrow(hint, portability):
        yield hint, group.base


def _narrow(hint: RopeForm, portability: Portability) -> bool:
    """Whether lists reach further than the method's own type: mlx-lm, llama.cpp and TGI ignore `truncate: false`."""
    return portability == "widest" and hint.type == "yarn" and hint.parameters.get("truncate") is False


def _proportional(divisors: Sequence[float], group: GroupPlan) -> list[tuple[RopeForm, float]]:
    """`proportional`, for pairs that stand still after others that share one divisor, or a changed base."""
    kept = sum(divisor < UNROTATED for divisor in divisors)
    if kept == len(divisors):
        return []
    entries: Entries = {"partial_rotary_factor": 2 * kept / group.rotated_dims}
    if kept and max(divisors[:kept]) == min(divisors[:kept]):
        factor: Entries = {} if divisors[0] == 1.0 else {"factor": divisors[0]}
        return [(RopeForm("proportional", {**entries, **factor}), group.base)]
    base = group.base * divisors[1] ** (group.rotated_dims / 2) if kept > 1 else group.base
    return [(RopeForm("proportional", entries), base)]


def _yarn_with_temperature(hint: RopeForm, temperature: float, scale: float) -> RopeForm:
    """The method's yarn form, with the temperature spelled out where it isn't the type's own."""
    default = 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0
    if abs(temperature / default - 1) < 1e-12:
        return hint
    return RopeForm("yarn", {**hint.parameters, "attention_factor": temperature})


def _lists(plan: RopePlan, divisors: Sequence[float], temperature: float | None, portability: Portability) -> RopeForm:
    """`longrope` with equal lists.

    The default temperature is spelled out with the very value that every engine would compute when it is absent,
    because transformers 4 would compute another (it takes max_position_embeddings for the original length).
    """
    default = longrope_temperature(plan.scale, plan.original_length)
    entries: Entries = {
        "factor": plan.scale,
        "short_factor": list(divisors),
        "long_factor": list(divisors),
        ORIGINAL_KEY: plan.original_length,
        "attention_factor": default if temperature is None else temperature,
    }
    if portability == "exact" and temperature is not None and abs(temperature / default - 1) > 1e-12:
        entries |= {"short_mscale": temperature, "long_mscale": temperature}
    return RopeForm("longrope", entries)


def longrope_temperature(scale: float, original_length: int) -> float:
    """a = sqrt(1 + ln s / ln L0), the default of every engine for `longrope` (2402.13753, section 4)."""
    return math.sqrt(1 + math.log(scale) / math.log(original_length)) if scale > 1 else 1.0


def lowering_notes(
    form: RopeForm,
    group: GroupPlan,
    portability: Portability,
    factor: float,
    edits: tuple[ScaleRows, ...],
    tensors: Mapping[str, TensorInfo],
) -> list[str]:
    """What was chosen for one table, why, and what it costs, one line each."""
    if form.type == "default":
        changed = "a new rope_theta" if group.rotation.code is None else "the plain rope keys"
    elif form.type == "longrope":
        changed = "longrope with equal factor lists"
    else:
        changed = f"rope type {form.type}"
    where = f" for {group.layer_type}" if group.layer_type else ""
    lines = [f"expressed{where} as {changed}: {_why(form, group, portability)}"]
    if edits:
        dtypes = {tensors[edit.tensor].dtype for edit in edits}
        rounding = ", ".join(f"{_ROUNDING[dtype]} in {dtype}" for dtype in sorted(dtypes))
        lines.append(
            f"q.k x {factor:.6g} folded into {len(edits)} query tensors: no engine can get this temperature wrong; it"
            f" costs one rounding a weight (relative {rounding})"
        )
    return lines


def _why(form: RopeForm, group: GroupPlan, portability: Portability) -> str:
    native = group.rotation.form is not None and group.rotation.form.type == form.type
    if group.rotation.code is not None:
        return f"the modeling file {group.rotation.code.name} computes the rest; only transformers runs it, with trust"
    if form.type == "default":
        return "every engine reads it"
    if portability == "transformers" and (form.type == "proportional" or "attention_factor" in form.parameters):
        return "transformers computes it as it stands, weights untouched; other engines may not"
    if portability == "exact" and "attention_factor" in form.parameters:
        return "weights untouched; engines that ignore attention_factor compute their own temperature"
    if native:
        return "the method's own type"
    if form.type == "longrope" and group.rotation.form is not None and _narrow(group.rotation.form, portability):
        return "more engines read lists than truncate: false"
    return "no narrower type computes these divisors" if form.type == "longrope" else "it computes the same divisors"
