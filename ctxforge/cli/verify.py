"""`ctxforge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.verification import VerifyReport
    from ctxforge.verification.gates import Judgement


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
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever the gates say: for reporting alone.")
@click.option("--to", metavar="LENGTH", help="Target length; default: the one that the conversion recorded.")
@click.option("--trained-length", metavar="LENGTH", help="Trained length; default: the one that was recorded.")
@click.option("--lengths", metavar="L1,L2,...", help="Report these lengths.")
@click.option("--buckets", type=int, help="Position buckets up to the target.")
@click.option("--windows", type=int, help="Windows of the target length.")
@click.option("--needles", type=int, help="Depth strata of the retrieval grid.")
@click.option("--seeds", type=int, help="Haystacks of the retrieval grid.")
@click.option("--short-windows", type=int, help="Windows of the short-context comparison.")
@click.option("--retrieval/--no-retrieval", default=True, show_default=True, help="Measure the retrieval grid.")
@click.option("--task", "tasks", metavar="NAME,...", help="Ask these tasks too (docs/verification.md lists them).")
@click.option("--task-data", multiple=True, metavar="NAME=FILE", help="Your copy of a task's data set.")
@click.option("--task-seeds", type=int, help="Prompts of each depth of a task.")
@click.option("--task-depths", type=int, help="Depth strata of a task's prompts.")
@click.option("--chat/--no-chat", default=None, help="Put tasks into the chat template; default: where there is one.")
@click.option("--protocol", "protocols", metavar="NAME,...", help="Perplexity protocols beside the one pass.")
@click.option("--far-context/--no-far-context", default=None, help="LongPPL and the worth of far context.")
@click.option("--source-curve/--no-source-curve", default=None, help="Run the source up to the target too.")
@click.option("--lm-eval", metavar="NAME,...", help="Hand these over to lm-eval: ruler, longbench, short, or its own.")
@click.option("--lm-eval-limit", type=int, help="Documents a task and, for RULER, length.")
@click.option("--lm-eval-include", type=click.Path(path_type=Path), help="A folder with task files of your own.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--attention", default="auto", show_default=True, help="auto, or one of transformers' by its name.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the modeling code inside FOLDER (and SOURCE). Read it first."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write perplexity by position as SVG.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the report: .html or .json.")
@click.option("--figures", type=click.Path(path_type=Path), help="Write the report's figures into this folder.")
@click.option("--fresh", is_flag=True, help="Don't go on with what an interrupted run of the same command left.")
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
    exit_zero: bool,
    to: str | None,
    trained_length: str | None,
    plot: Path | None,
    report: Path | None,
    figures: Path | None,
    fresh: bool,
    lm_eval: str | None,
    lm_eval_limit: int | None,
    lm_eval_include: Path | None,
    **options: Any,
) -> int:
    """Measure FOLDER and judge it: perplexity of a text at every length from one pass, retrieval, what short text lost.

    One full-length pass without a KV cache gives every shorter length; retrieval plants needles at stratified depths
    and scores the answers teacher-forced, which equals greedy decoding. Gates compare the result with its source, each
    with an interval over documents or prompts. Exits with 0 when every gate passes, 1 when one fails, 3 when one
    can't be decided on so few units. Interrupted, it keeps what is finished, and the same command goes on with it;
    started with `accelerate launch -m ctxforge verify ...` it spreads the work over processes.
    """
    from ctxforge import pipeline
    from ctxforge.cli.files import check_writable, read_text
    from ctxforge.cli.verify_outputs import Outputs, write_outputs
    from ctxforge.lengths import parse_length
    from ctxforge.verification.gates import read_gates
    from ctxforge.verification.processes import is_first

    outputs = Outputs(plot, report, junit, figures)
    check_writable(*outputs.files)
    choices = _choices(options)
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
            choices=choices,
            gates=gates,
            strict=strict,
            fresh=fresh,
            lm_eval={
                "lm_eval_tasks": _names(lm_eval),
                "limit": lm_eval_limit,
                "include_path": () if lm_eval_include is None else (str(lm_eval_include),),
            },
            progress=progress,
        )
    judgement = found.judgement
    assert judgement is not None
    code = 0 if exit_zero else int(judgement.exit_code)
    if not is_first():
        return code
    show(ui, found)
    write_outputs(ui, found, folder, outputs)
    ui.document(str(judgement.verdict), {"report": found.to_dict()})
    return code


def show(ui: Output, found: VerifyReport) -> Judgement:
    """Tables and verdicts for people."""
    from ctxforge.verification import render_table

    judgement = found.judgement
    assert judgement is not None
    for title, header, rows in render_table(found):
        ui.heading(title)
        ui.table(header, rows)
    ui.heading(judgement.headline)
    for result in judgement.results:
        ui.text(f"  {result.verdict:<12} {result.gate.name}: {result.words}")
    for name, reason in judgement.left_out:
        ui.text(f"  {'left out':<12} {name}: {reason}")
    if found.effective is not None:
        ui.text(f"  effective length: {found.effective.words}")
    for note in found.notes:
        ui.note(f"left out: {note}")
    return judgement


def _choices(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of `VerifySettings` that the user set."""
    from ctxforge.lengths import parse_length

    names = {"windows": "documents"}
    chosen = {names.get(name, name): value for name, value in options.items() if value is not None}
    for name in ("tasks", "protocols"):
        if name in chosen:
            chosen[name] = _names(chosen[name])
    chosen["task_data"] = tuple(_task_data(entry) for entry in options.get("task_data") or ())
    if "documents" in chosen:
        chosen["fewer_documents"] = False
    if "lengths" in chosen:
        chosen["lengths"] = tuple(parse_length(part) for part in str(chosen["lengths"]).split(","))
    return chosen


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (given or "").split(",") if part.strip())


def _task_data(entry: str) -> tuple[str, Path]:
    from ctxforge.errors import UsageError
    from ctxforge.verification.tasks import find_task

    name, equals, path = entry.partition("=")
    if not equals or not path:
        raise UsageError(f"--task-data {entry!r} names no file", "write --task-data NAME=FILE")
    return find_task(name).name, Path(path)
