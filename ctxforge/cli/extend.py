"""`ctxforge extend`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ctxforge.cli.options import build_recipe, bytes_text, conversion_options
from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="Convert a checkpoint to a longer context.",
    epilog="Example: ctxforge extend bundled --method yarn --to 4x --out bundled-4x",
)
@conversion_options
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist.")
@click.option("--link", is_flag=True, help="Hardlink untouched files instead of copying them.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, at the very end.")
@click.option("--checksum", is_flag=True, help="Record the sha256 of copied weights too.")
@with_output
def command(ui: Output, out: Path, link: bool, overwrite: bool, checksum: bool, **options: Any) -> None:
    """Convert SOURCE to a longer context and write it to --out.

    SOURCE is a folder, a .gguf file, a Hub id (org/name, org/name@revision), or `bundled`. The output appears under
    its final name whole or not at all; the source is never touched.
    """
    # Edits are elementwise: starting OpenBLAS's threads would cost more than half of numpy's import, for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ctxforge import pipeline
    from ctxforge.provenance import plan_document
    from ctxforge.recipe import OutputOptions

    recipe = build_recipe(**options)
    with ui.progress("writing") as progress:
        done = pipeline.extend(
            recipe, OutputOptions(out=out, link=link, overwrite=overwrite, checksum=checksum), progress
        )
    conversion, report = done.conversion, done.report
    for line in conversion.plan.warnings:
        ui.warn(line)
    for line in conversion.lowered.notes:
        ui.note(line)
    for row in conversion.engines.silently_wrong:
        ui.warn(f"{row.engine} {row.versions} computes something else: {row.detail} (ctxforge engines)")
    ui.text(str(report.out))
    ui.note(
        f"{conversion.plan.method}: {conversion.plan.original_length} -> {conversion.plan.target_length} tokens;"
        f" {bytes_text(report.bytes_written)} written, {len(conversion.edits.tensors)} tensors edited"
    )
    ui.document(
        "ok",
        {
            "out": str(report.out),
            "plan": plan_document(conversion),
            "written": {
                "bytes_read": report.bytes_read,
                "bytes_written": report.bytes_written,
                "tensor_bytes_written": report.tensor_bytes_written,
                "cloned": list(report.cloned),
                "copied": list(report.copied),
                "linked": list(report.linked),
                "patched": list(report.patched),
            },
        },
    )
