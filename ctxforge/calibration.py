"""Calibration as a stage: which lengths, which source, which data; then `ctxforge.calibrate.run` does the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge import origins, pipeline, provenance
from ctxforge.checkpoint import Checkpoint, check_output, read_checkpoint
from ctxforge.checkpoint.staging import locked, writing
from ctxforge.errors import CtxforgeError, UnsupportedError, UsageError
from ctxforge.origins import local, recorded_source
from ctxforge.recipe import ConversionRecipe, MethodChoice, OutputOptions
from ctxforge.sources import BUNDLED, bundled_calibration_data, bundled_text, resolve_source

if TYPE_CHECKING:
    from ctxforge.calibrate.parallel import ParallelOptions
    from ctxforge.calibrate.recipes import CalibrationRecipe
    from ctxforge.calibrate.run.request import Calibrated, Request

Progress = Callable[[str, int, int], None]
WORK_SUFFIX = ".calibration"
CONVERTED = "converted"
_WHOLE = "extension"


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How a calibration is run, beside its recipe.

    Attributes:
        data: sources of documents, as `--data` takes them; empty for the bundled model's own.
        guard_texts: texts that will be verified on; documents that share a passage with one are left out.
        seed: of everything that is drawn.
        work: folder of the run; None: beside the output, with `.calibration` at its end.
        save_every: steps between states; None: a tenth of the steps, at most 50.
        fresh: drop what an interrupted run left.
        overwrite, link: of the output.
        dtype, device, attention, trust_remote_code: how models are loaded; device auto or cpu.
        parallel: how processes share the work; None for each a whole model.
    """

    data: tuple[str, ...] = ()
    guard_texts: tuple[str, ...] = ()
    seed: int = 0
    work: Path | None = None
    save_every: int | None = None
    fresh: bool = False
    overwrite: bool = False
    link: bool = False
    dtype: str = "auto"
    attention: str = "auto"
    trust_remote_code: bool = False
    parallel: ParallelOptions | None = field(default=None)


def calibrate(
    folder: str | Path,
    out: Path,
    recipe: CalibrationRecipe,
    options: CalibrationOptions,
    *,
    source: str | None = None,
    trained_length: int | None = None,
    target_length: int | None = None,
    progress: Progress | None = None,
) -> Calibrated | None:
    """Fine-tune the checkpoint in `folder` as a recipe says, and write the merged result to `out`.

    The lengths come from its provenance where the arguments are silent, and so does the source, which the held-out
    scores compare with.

    Args:
        folder: what `extend` wrote, or any checkpoint whose lengths are given.
        out: the folder to make.
        recipe: see `ctxforge.calibrate.recipes`.
        options: see there.
        source: the checkpoint before the extension.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        progress: called with (what, done, of how many).

    Returns:
        What was done; None in all processes but the first.

    Raises:
        CtxforgeError: bad input, no memory, no space, an interrupted run.
    """
    from ctxforge.calibrate.run.calibrating import calibrate as run

    request = make_request(
        folder, out, recipe, options, source=source, trained_length=trained_length, target_length=target_length
    )
    return run(request, progress or (lambda _what, _done, _total: None))


def make_request(
    folder: str | Path,
    out: Path,
    recipe: CalibrationRecipe,
    options: CalibrationOptions,
    *,
    source: str | None = None,
    trained_length: int | None = None,
    target_length: int | None = None,
) -> Request:
    """Everything about a calibration that can be known, and refused, before a model is loaded. See `calibrate`."""
    from ctxforge.calibrate.parallel import ParallelOptions
    from ctxforge.calibrate.recipes import make_plan
    from ctxforge.calibrate.run.model import LoadOptions
    from ctxforge.calibrate.run.request import Request

    checkpoint = local(read_checkpoint(resolve_source(str(folder))))
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedError(
            f"{folder} is quantised, and a calibration can't be merged into rounded weights",
            "calibrate the checkpoint that it was quantised from, and quantise the result",
        )
    record = _record(checkpoint, folder)
    named = source or recorded_source(checkpoint)
    origin = None if named is None else local(read_checkpoint(resolve_source(named)))
    target = target_length or origins.target_length(checkpoint)
    trained = trained_length or origins.trained_length(checkpoint, origin)
    work = (options.work or Path(out).with_name(Path(out).name + WORK_SUFFIX)).absolute()
    _check_work(work, Path(out), checkpoint, origin)
    parallel = options.parallel or ParallelOptions()
    if parallel.tracker is not None:
        parallel = replace(parallel, project_dir=work)
    if trained > target:
        raise UsageError(
            f"the trained length of {trained} exceeds the target of {target} tokens", "pass --to with a longer length"
        )
    data, guard = options.data, options.guard_texts
    if _of_bundled(record, folder):
        data = data or (str(bundled_calibration_data()),)
        guard = (*guard, bundled_text())
    plan = make_plan(recipe, trained_length=trained, target_length=target, width=_width(checkpoint), seed=options.seed)
    return Request(
        checkpoint=checkpoint,
        record=record,
        source=origin,
        source_name=named,
        plan=plan,
        data=tuple(data),
        guard_texts=tuple(guard),
        out=Path(out).absolute(),
        work=work,
        load=LoadOptions(options.dtype, options.attention, options.trust_remote_code),
        parallel=parallel,
        save_every=options.save_every,
        fresh=options.fresh,
        overwrite=options.overwrite,
        link=options.link,
    )


def extend_and_calibrate(
    conversion: ConversionRecipe,
    output: OutputOptions,
    recipe: CalibrationRecipe,
    options: CalibrationOptions,
    progress: Progress | None = None,
) -> tuple[pipeline.Conversion, Calibrated | None]:
    """Convert into the run's folder, calibrate that, and write the merged result to the output.

    An interrupted run goes on: the conversion is made anew, which costs little and gives the same bytes.

    Args:
        conversion: see `pipeline.extend`.
        output: where the result goes.
        recipe, options: see `calibrate`.
        progress: called with (what, done, of how many).

    Raises:
        CtxforgeError: see `pipeline.extend` and `calibrate`.
    """
    from ctxforge.verification.processes import launched

    if launched() > 1:
        raise UsageError(
            "several processes would convert at once",
            "convert first (ctxforge extend), then accelerate launch -m ctxforge calibrate",
        )
    asked = local(read_checkpoint(resolve_source(conversion.source), revision=conversion.revision))
    check_output(asked, output.out, overwrite=output.overwrite)
    work = (options.work or output.out.with_name(output.out.name + WORK_SUFFIX)).absolute()
    _check_work(work, output.out, asked)
    with writing(work.parent):
        work.mkdir(parents=True, exist_ok=True)
    told = progress or (lambda _what, _done, _total: None)
    chosen = replace(options, work=work, overwrite=output.overwrite, link=output.link)
    try:
        # Held all along: a second run must not take the conversion away from under this one.
        with locked(work / _WHOLE):
            try:
                converted = pipeline.extend(
                    conversion,
                    OutputOptions(out=work / CONVERTED, link=True, overwrite=True),
                    lambda done, total: told("converting", done, total),
                )
                name = _name(conversion)
                found = calibrate(work / CONVERTED, output.out, recipe, chosen, source=name, progress=progress)
            finally:
                shutil.rmtree(work / CONVERTED, ignore_errors=True)
    finally:
        with suppress(OSError):
            work.rmdir()  # where it is empty: the run was refused
    return converted.conversion, found


def _check_work(work: Path, out: Path, *checkpoints: Checkpoint | None) -> None:
    """Refuse a folder of the run where a checkpoint is, or is to be."""
    place = Path(os.path.realpath(work))
    roots = [Path(one.root) for one in checkpoints if one is not None and one.root is not None]
    for taken in (out, *(root for root in roots if root.is_dir())):
        if place.is_relative_to(os.path.realpath(taken)):
            raise UsageError(f"the run's folder {work} is that of a checkpoint, or in it", "choose another --work")


def _name(conversion: ConversionRecipe) -> str:
    """The source with its revision, as `read_checkpoint` takes it."""
    plain = conversion.revision is None or "@" in conversion.source
    return conversion.source if plain else f"{conversion.source}@{conversion.revision}"


def _record(checkpoint: Checkpoint, folder: str | Path) -> Mapping[str, Any]:
    """The provenance of a checkpoint; of one without, that of a conversion that changes nothing."""
    found = checkpoint.json_files.get(provenance.FILE_NAME)
    if found is not None:
        return found
    import json

    unchanged = ConversionRecipe(source=str(folder), method=MethodChoice(name="none"))
    try:
        document: dict[str, Any] = json.loads(provenance.record(pipeline.plan(unchanged), {}, {}))
    except CtxforgeError:
        # No RoPE that is understood: the training goes by the lengths that were given.
        return {"schema_version": provenance.SCHEMA_VERSION, "source": {"name": str(folder)}}
    return document


def _of_bundled(record: Mapping[str, Any], folder: str | Path) -> bool:
    source = record.get("source")
    return str(folder) == BUNDLED or (isinstance(source, Mapping) and source.get("name") == BUNDLED)


def _width(checkpoint: Checkpoint) -> int:
    """Hidden size, which learning rates follow."""
    config: Mapping[str, Any] = checkpoint.config
    for holder in (
        config,
        *(config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)),
    ):
        for name in ("hidden_size", "n_embd", "d_model"):
            if isinstance(holder.get(name), int) and holder[name] > 0:
                return int(holder[name])
    return 4096


__all__: Sequence[str] = ["CalibrationOptions", "calibrate", "extend_and_calibrate", "make_request"]
