"""`ctxforge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.verification import VerifyReport


@click.command(
    short_help="Measure perplexity and retrieval, and judge them by gates.",
    epilog="Example: ctxforge verify bundled-4x --source bundled --tier quick --junit gates.xml",
)
@click.argument("folder")
@click.option("--source", metavar="SRC", help="The checkpoint it was made from; default: the recorded one, if there.")
@click.option(
    "--text",
    "text_path",
    type=click.Path(path_type=Path),
    help="UTF-8 text, at least as long as the target. Default for models made from `bundled`: the held-out text.",
)
@click.option(
    "--tier",
    type=click.Choice(["smoke", "quick", "standard", "full"]),
    default="quick",
    show_default=True,
    help="How much is measured and which gates count; the options below replace single numbers of it.",
)
@click.option("--gates", "gates_path", type=click.Path(path_type=Path), help="Thresholds in a TOML or JSON file.")
@click.option("--strict", is_flag=True, help="An inconclusive gate counts as failed.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the gates as JUnit XML.")
@click.option("--to", metavar="LENGTH", help="Target length; default: the one that the conversion recorded.")
@click.option("--trained-length", metavar="LENGTH", help="Trained length; default: the one that was recorded.")
@click.option("--lengths", metavar="L1,L2,...", help="Report these lengths.")
@click.option("--buckets", type=int, help="Position buckets up to the target.")
@click.option("--windows", type=int, help="Windows of the target length.")
@click.option("--needles", type=int, help="Depth strata of the retrieval grid.")
@click.option("--seeds", type=int, help="Haystacks of the retrieval grid.")
@click.option("--short-windows", type=int, help="Windows of the short-context comparison.")
@click.option("--retrieval/--no-retrieval", default=True, show_default=True, help="Measure the retrieval grid.")
@click.option("--source-curve/--no-source-curve", default=True, help="Run the source up to the target too.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the modeling code inside FOLDER (and SOURCE). Read it first."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write perplexity by position as SVG.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the report: .html or .json.")
@with_output
def command(
    ui: Output,
    folder: str,
    source: str | None,
    text_path: Path | None,
    tier: str,
    gates_path: Path | None,
    strict: bool,
    junit: Path | None,
    to: str | None,
    trained_length: str | None,
    plot: Path | None,
    report: Path | None,
    **options: Any,
) -> int:
    """Measure FOLDER and judge it: perplexity of a text at every length from one pass, retrieval, what short text lost.

    One full-length pass without a KV cache gives every shorter length; retrieval plants needles at stratified depths
    and scores the answers teacher-forced, which equals greedy decoding. Gates compare the result with its source, each
    with an interval over documents or prompts. Exits with 0 when every gate passes, 1 when one fails, 3 when one
    can't be decided on so few units.
    """
    from ctxforge import pipeline
    from ctxforge.cli.files import read_text
    from ctxforge.lengths import parse_length
    from ctxforge.verification import render_table
    from ctxforge.verification.gates import read_gates

    gates = read_gates(gates_path) if gates_path is not None else None
    text = "" if tier == "smoke" else read_text(text_path, folder)
    with ui.steps() as progress:
        found = pipeline.verify(
            Path(folder),
            text=text,
            source=source,
            trained_length=None if trained_length is None else parse_length(trained_length),
            target_length=None if to is None else parse_length(to),
            tier=tier,
            choices=_choices(options),
            gates=gates,
            strict=strict,
            progress=progress,
        )
    for title, header, rows in render_table(found):
        ui.heading(title)
        ui.table(header, rows)
    judgement = found.judgement
    assert judgement is not None
    ui.heading(judgement.headline)
    for result in judgement.results:
        ui.text(f"  {result.verdict:<12} {result.gate.name}: {result.words}")
    for name, reason in judgement.left_out:
        ui.text(f"  {'left out':<12} {name}: {reason}")
    if found.effective is not None:
        ui.text(f"  effective length: {found.effective.words}")
    _write(ui, found, folder, plot=plot, report=report, junit=junit)
    ui.document(str(judgement.verdict), {"report": found.to_dict()})
    return int(judgement.exit_code)


def _choices(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of `VerifySettings` that the user set."""
    from ctxforge.lengths import parse_length

    names = {"windows": "documents"}
    chosen = {names.get(name, name): value for name, value in options.items() if value is not None}
    if "documents" in chosen:
        chosen["fewer_documents"] = False
    if "lengths" in chosen:
        chosen["lengths"] = tuple(parse_length(part) for part in str(chosen["lengths"]).split(","))
    return chosen


def _write(
    ui: Output, found: VerifyReport, folder: str, *, plot: Path | None, report: Path | None, junit: Path | None
) -> None:
    import json
    import os
    import sys

    from ctxforge.cli.files import write_text
    from ctxforge.verification import curves_of, plot_svg
    from ctxforge.verification.outputs import annotate, append_summary, junit_xml, summary_markdown

    judgement, protocol = found.judgement, found.protocol
    assert judgement is not None
    if plot is not None:
        write_text(plot, plot_svg(curves_of(found), protocol.trained_length, target_length=protocol.target_length))
        ui.note(f"plot: {plot}")
    if report is not None:
        write_text(report, _page(found, folder) if report.suffix == ".html" else json.dumps(found.to_dict(), indent=2))
        ui.note(f"report: {report}")
    if junit is not None:
        write_text(junit, junit_xml(judgement, name=f"ctxforge verify {folder}"))
        ui.note(f"JUnit: {junit}")
    append_summary(summary_markdown(judgement, title=f"ctxforge verify {folder}", effective=found.effective))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotate(judgement):
            sys.stderr.write(line + "\n")


def _page(found: VerifyReport, folder: str) -> str:
    from ctxforge.checkpoint import read_checkpoint
    from ctxforge.provenance import FILE_NAME
    from ctxforge.sources import resolve_source
    from ctxforge.verification.html import render_report

    record = read_checkpoint(resolve_source(folder)).json_files.get(FILE_NAME) or {}
    plan = record.get("plan")
    return render_report(
        found,
        judgement=found.judgement,
        effective=found.effective,
        plan=plan if isinstance(plan, dict) else None,
        title=Path(folder).name,
        command=f"ctxforge verify {folder}",
    )
