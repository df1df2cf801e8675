"""A job's objects: the very ones that the command line fills."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.batch.specs import CalibrateSpec, JobSpec, VerifySpec
from ctxforge.errors import UsageError
from ctxforge.lengths import parse_length
from ctxforge.recipe import ConversionRecipe

if TYPE_CHECKING:
    from ctxforge.calibrate.recipes import CalibrationRecipe
    from ctxforge.calibration import CalibrationOptions

_CONVERSION = tuple(field.name for field in dataclasses.fields(ConversionRecipe))
_BASE = "base"
# What the command line calls otherwise than `VerifySettings` does.
_SETTINGS = {"windows": "documents"}
_NOT_SETTINGS = (
    *("tier", "text_path", "gates", "strict", "source", "to", "trained_length", "task_data", "lengths"),
    *("lm_eval", "lm_eval_limit", "lm_eval_include", "plot", "report", "junit"),
)


def conversion_recipe(spec: JobSpec) -> ConversionRecipe:
    """The conversion of a job."""
    return ConversionRecipe(**{name: getattr(spec, name) for name in _CONVERSION})


def calibration_recipe(spec: CalibrateSpec) -> CalibrationRecipe:
    """The recipe of a job's calibration.

    Raises:
        UsageError: an unknown recipe, field or value.
    """
    from ctxforge.calibrate.recipes import checked, find_recipe, read_recipe

    if isinstance(spec.recipe, str):
        return read_recipe(spec.recipe, spec.changes, steps=spec.steps)
    if spec.changes:
        raise UsageError("a calibration has both a recipe with fields and changes", "write the changes as fields")
    given = dict(spec.recipe)
    base = given.pop(_BASE, None)
    document: dict[str, Any] = {} if base is None else dataclasses.asdict(find_recipe(str(base)))
    document["name"] = str(base or "own")
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(document.get(key), dict)
        document[key] = {**document[key], **value} if both else value
    if spec.steps is not None:
        document["steps"] = spec.steps
    return checked(document)


def calibration_options(spec: CalibrateSpec, guard_texts: tuple[str, ...] = ()) -> CalibrationOptions:
    """How a job's calibration is run.

    Args:
        spec: the job's.
        guard_texts: the contents of its `guard_paths`, and of the text that it is verified on.
    """
    from ctxforge.calibrate.parallel import ParallelOptions
    from ctxforge.calibration import CalibrationOptions

    work = None if spec.work is None else Path(spec.work)
    return CalibrationOptions(
        data=spec.data,
        guard_texts=guard_texts,
        seed=spec.seed,
        work=work,
        save_every=spec.save_every,
        dtype=spec.dtype,
        attention=spec.attention,
        trust_remote_code=spec.trust_remote_code,
        parallel=ParallelOptions(cpu=spec.device == "cpu", tracker=spec.tracker, project_dir=work),
    )


def verify_arguments(spec: VerifySpec) -> dict[str, Any]:
    """What `pipeline.verify` is called with, beside folder, text, source and progress.

    Raises:
        UsageError: a length, gate or task that is none.
    """
    return {
        "trained_length": None if spec.trained_length is None else parse_length(spec.trained_length),
        "target_length": None if spec.to is None else parse_length(spec.to),
        "tier": spec.tier,
        "choices": verify_choices(spec),
        "gates": _gates(spec),
        "strict": spec.strict,
        "lm_eval": {
            "lm_eval_tasks": spec.lm_eval,
            "limit": spec.lm_eval_limit,
            "include_path": () if spec.lm_eval_include is None else (spec.lm_eval_include,),
        },
    }


def verify_choices(spec: VerifySpec) -> dict[str, Any]:
    """The fields of `VerifySettings` that the job sets."""
    from ctxforge.verification.tasks import find_task

    given = {key.name: getattr(spec, key.name) for key in dataclasses.fields(spec) if key.name not in _NOT_SETTINGS}
    choices = {_SETTINGS.get(name, name): value for name, value in given.items() if value is not None}
    choices["task_data"] = tuple((find_task(name).name, Path(path)) for name, path in spec.task_data.items())
    if "documents" in choices:
        choices["fewer_documents"] = False
    if spec.lengths is not None:
        choices["lengths"] = tuple(parse_length(length) for length in spec.lengths)
    return choices


def _gates(spec: VerifySpec) -> Any:
    from ctxforge.verification.gates import parse_gates, read_gates

    if spec.gates is None:
        return None
    return read_gates(spec.gates) if isinstance(spec.gates, str) else parse_gates(spec.gates)
