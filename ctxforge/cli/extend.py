"""`ctxforge extend`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.calibrate import RUN_OPTIONS, build_options, report, run_options
from ctxforge.cli.options import build_recipe, bytes_text, conversion_options
from ctxforge.cli.output import Output, with_output
from ctxforge.cli.push_options import (
    PUSH_OPTIONS,
    build_push,
    push_options,
    push_target,
    refuse_without_push,
    remark_plan,
    show_published,
)

if TYPE_CHECKING:
    from ctxforge.checkpoint import WriteReport
    from ctxforge.pipeline import Conversion
    from ctxforge.publish import PushOptions
    from ctxforge.recipe import ConversionRecipe, OutputOptions


@click.command(
    short_help="Convert a checkpoint to a longer context.",
    epilog="Example: ctxforge extend bundled --method yarn --to 4x --out bundled-4x",
)
@conversion_options
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder to write; must not exist. Default: SOURCE-METHOD-LENGTH.",
)
@click.option("--link", is_flag=True, help="Hardlink untouched files instead of copying them.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, at the very end.")
@click.option("--checksum", is_flag=True, help="Record the sha256 of copied weights too.")
@click.option(
    "--calibrate",
    "calibrate_recipe",
    metavar="NAME|FILE",
    help="Fine-tune the result by a recipe (ctxforge calibrate --help), and write that.",
)
@run_options
@click.option("--verify", "verify_result", is_flag=True, help="Judge what was written: ctxforge verify --tier quick.")
@click.option("--text", "text_path", type=click.Path(path_type=Path), help="Text for --verify.")
@push_target
@push_options
@with_output
def command(
    ui: Output,
    out: Path | None,
    link: bool,
    overwrite: bool,
    checksum: bool,
    calibrate_recipe: str | None,
    verify_result: bool,
    text_path: Path | None,
    push_to: str | None,
    **options: Any,
) -> int:
    """Convert SOURCE to a longer context and write it to --out.

    SOURCE is a folder, a .gguf file, a Hub id (org/name, org/name@revision), or `bundled`. The output appears under
    its final name whole or not at all; the source is never touched. With --verify the exit code is that of the gates.
    With --push the result is published, and the address of the commit printed; what fails a gate is not.
    """
    # Edits are elementwise: starting OpenBLAS's threads would cost more than half of numpy's import, for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ctxforge import pipeline
    from ctxforge.cli.verify import show
    from ctxforge.errors import ExitCode
    from ctxforge.provenance import plan_document
    from ctxforge.recipe import OutputOptions

    given = {name: options.pop(name) for name in RUN_OPTIONS}
    push = _push(push_to, {name: options.pop(name) for name in PUSH_OPTIONS})
    recipe = build_recipe(**options)
    if push is not None and not (out or calibrate_recipe or verify_result):
        _refuse_without_recipe(given)
        _refuse_without_folder(link=link, overwrite=overwrite, checksum=checksum)
        return _publish(ui, recipe, push)
    output = OutputOptions(out=out or _default_out(recipe), link=link, overwrite=overwrite, checksum=checksum)
    text = _text(text_path, recipe.source) if verify_result else ""
    if push is not None:
        from ctxforge import publish

        publish.plan_publish(pipeline.plan(recipe), push)  # whatever can be refused is refused before the work
    document: dict[str, Any] = {}
    say = ui.text if push is None else ui.note
    if calibrate_recipe is None:
        _refuse_without_recipe(given)
        with ui.progress("writing") as progress:
            done = pipeline.extend(recipe, output, progress)
        conversion = done.conversion
        _remarks(ui, conversion)
        say(str(done.out))
        ui.note(
            f"{conversion.plan.method}: {conversion.plan.original_length} -> {conversion.plan.target_length} tokens;"
            f" {bytes_text(done.report.bytes_written)} written, {len(conversion.edits.tensors)} tensors edited"
        )
        document["written"] = _written(done.report)
    else:
        conversion, document["calibration"] = _calibrated(ui, recipe, output, calibrate_recipe, given, text)
    document |= {"out": str(output.out), "plan": plan_document(conversion)}
    code: int = ExitCode.OK
    status, found = "ok", None
    if verify_result:
        with ui.steps() as steps:
            report = pipeline.verify(output.out, text=text, source=recipe.source, progress=steps)
        judgement = show(ui, report)
        code, status, found = int(judgement.exit_code), str(judgement.verdict), report.to_dict()
        document["report"] = found
    if push is not None and code == ExitCode.OK:
        document |= _push_folder(ui, output.out, push, found)
    elif push is not None:
        ui.warn(f"not published, because of the gates; ctxforge push {output.out} does it all the same")
    ui.document(status, document)
    return code


def _push(push_to: str | None, given: dict[str, Any]) -> PushOptions | None:
    if push_to is None:
        refuse_without_push(given)
        return None
    return build_push(push_to, given)


def _publish(ui: Output, recipe: ConversionRecipe, push: PushOptions) -> int:
    """Convert straight into a repository."""
    from ctxforge import publish
    from ctxforge.errors import ExitCode
    from ctxforge.provenance import plan_document

    conversion = publish.plan_source(recipe, tell=ui.note)
    _remarks(ui, conversion)
    done = publish.publish(conversion, push, tell=ui.note, planned=lambda plan: remark_plan(ui, plan))
    show_published(ui, done)
    ui.document("ok", {"plan": plan_document(conversion), **done.document()})
    return ExitCode.OK


def _push_folder(ui: Output, folder: Path, push: PushOptions, report: dict[str, Any] | None) -> dict[str, Any]:
    from ctxforge import publish

    done = publish.push(folder, push, report=report, tell=ui.note, planned=lambda plan: remark_plan(ui, plan))
    show_published(ui, done)
    return done.document()


def _refuse_without_folder(**given: bool) -> None:
    from ctxforge.errors import UsageError

    told = [name for name, value in given.items() if value]
    if told:
        raise UsageError(f"--{told[0]} is of a folder, and --push alone writes none", "add --out DIR, or leave it out")


def _calibrated(
    ui: Output, recipe: ConversionRecipe, output: OutputOptions, name: str, given: dict[str, Any], text: str
) -> tuple[Conversion, dict[str, Any]]:
    """Convert, calibrate and write; what is told of it on the way."""
    from dataclasses import replace

    from ctxforge.calibrate.recipes import read_recipe
    from ctxforge.calibration import extend_and_calibrate

    chosen = read_recipe(name, given.pop("changes"), steps=given.pop("steps"))
    options = build_options(**given)
    options = replace(options, guard_texts=(*options.guard_texts, *((text,) if text else ())))
    with ui.steps() as progress:
        conversion, found = extend_and_calibrate(recipe, output, chosen, options, progress)
    assert found is not None  # one process
    _remarks(ui, conversion)
    report(ui, found)
    return conversion, found.document()


def _remarks(ui: Output, conversion: Conversion) -> None:
    for line in conversion.plan.warnings:
        ui.warn(line)
    for line in conversion.lowered.notes:
        ui.note(line)
    for row in conversion.engines.silently_wrong:
        ui.warn(f"{row.engine} {row.versions} computes something else: {row.detail} (ctxforge engines)")


def _written(report: WriteReport) -> dict[str, Any]:
    return {
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "tensor_bytes_written": report.tensor_bytes_written,
        "cloned": list(report.cloned),
        "copied": list(report.copied),
        "linked": list(report.linked),
        "patched": list(report.patched),
    }


def _default_out(recipe: ConversionRecipe) -> Path:
    """A folder in the working one, named by what is in it: llama-yarn-64k."""
    from ctxforge import pipeline
    from ctxforge.lengths import format_length

    planned = pipeline.plan(recipe)
    name = Path(recipe.source.partition("@")[0]).name.removesuffix(".gguf") or "model"
    method = recipe.method.name if recipe.attach is None else f"{recipe.method.name}-{recipe.attach.name}"
    return Path(f"{name}-{method}-{format_length(planned.plan.target_length)}")


def _text(path: Path | None, source: str) -> str:
    from ctxforge.cli.files import read_text

    return read_text(path, source)


def _refuse_without_recipe(given: dict[str, Any]) -> None:
    from ctxforge.errors import UsageError

    told = [name for name, value in given.items() if value not in (None, (), 0)]
    if told:
        raise UsageError(
            f"{RUN_OPTIONS[told[0]]} is of a calibration, and none was asked for",
            "add --calibrate quick, or leave it out",
        )
