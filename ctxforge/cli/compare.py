"""`ctxforge compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.comparison import Comparison
    from ctxforge.verification.statistics import Interval


@click.command(
    short_help="Measure several methods on one model and rank them.",
    epilog="Example: ctxforge compare bundled --methods pi,ntk,yarn,yarn+resonance --to 4x",
)
@click.argument("source")
@click.option("--methods", required=True, metavar="M1,M2,...", help="As --method of extend, separated by commas.")
@click.option("--to", required=True, metavar="LENGTH", help="Target length: 64k, 8x or 65536.")
@click.option(
    "--text", "text_path", type=click.Path(path_type=Path), help="UTF-8 text; default for `bundled`: its own."
)
@click.option("--original-length", metavar="LENGTH", help="As for extend.")
@click.option("--trained-length", metavar="LENGTH", help="As for extend.")
@click.option("--lengths", metavar="L1,L2,...", help="Report these lengths; default: trained and target.")
@click.option("--windows", type=int, default=1, show_default=True, help="Windows of the target length.")
@click.option("--buckets", type=int, default=8, show_default=True, help="Position buckets up to the target.")
@click.option("--needles", type=int, default=10, show_default=True, help="Depth strata of the retrieval grid.")
@click.option("--seeds", type=int, default=2, show_default=True, help="Haystacks of the retrieval grid.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--attention", default="auto", show_default=True, help="auto, or one of transformers' by its name.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the comparison: .html or .json.")
@click.option("--figures", type=click.Path(path_type=Path), help="Write the figures into this folder.")
@click.option("--fresh", is_flag=True, help="Don't go on with what an interrupted run of the same command left.")
@with_output
def command(
    ui: Output,
    source: str,
    methods: str,
    to: str,
    text_path: Path | None,
    original_length: str | None,
    trained_length: str | None,
    lengths: str | None,
    windows: int,
    buckets: int,
    needles: int,
    seeds: int,
    dtype: str,
    device: str,
    attention: str,
    report: Path | None,
    figures: Path | None,
    fresh: bool,
) -> None:
    """Rank methods on SOURCE: the model is loaded once, each method's rotary table is swapped in, nothing is written.

    Ranked by the loss of retrieved answers at the target length, with intervals over prompts, paired between methods;
    perplexity by position beside it. A method may take one parameter here: yarn:beta_fast=64.
    """
    from ctxforge.cli.files import check_writable, read_text
    from ctxforge.cli.verify_outputs import write_figures
    from ctxforge.comparison import compare
    from ctxforge.lengths import parse_length
    from ctxforge.recipe import parse_method
    from ctxforge.verification import VerifySettings
    from ctxforge.verification.processes import is_first

    settings = VerifySettings(
        lengths=None if lengths is None else tuple(parse_length(part) for part in lengths.split(",")),
        documents=windows,
        buckets=buckets,
        needles=needles,
        seeds=seeds,
        dtype=dtype,
        device=device,
        attention=attention,
    )
    check_writable(report, None if figures is None else figures / "perplexity.svg")
    text = read_text(text_path, source)
    with ui.steps() as progress:
        found = compare(
            source,
            [parse_method(part) for part in methods.split(",") if part],
            to=to,
            text=text,
            settings=settings,
            original_length=original_length,
            trained_length=trained_length,
            fresh=fresh,
            progress=progress,
        )
    if not is_first():
        return
    ui.heading(f"{source}: {found.trained_length} -> {found.target_length} tokens, best first")
    ui.table(*_table(found))
    document = _document(found)
    if report is not None:
        _write(ui, found, document, report, source)
    if figures is not None:
        from ctxforge.comparison import SCORE
        from ctxforge.verification.html import comparison_figures

        drawn = comparison_figures(
            found.rows, trained_length=found.trained_length, target_length=found.target_length, score=SCORE
        )
        write_figures(ui, figures, drawn)
    ui.document("ok", document)


def _table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    header = ["method", "answer loss", "95 %", "to the best", "exact", "ppl", "last bucket", "short text"]
    base = next(row for row in found.rows if row.plan is None).measures
    rows = []
    for row in found.rows:
        at = [answer for answer in row.measures.answers if answer.length == found.target_length]
        short = _mean(row.measures.short_windows) - _mean(base.short_windows)
        rows.append(
            [
                row.name,
                f"{row.score.value:.3f}",
                _range(row.score),
                "-" if row.difference is None else f"{row.difference.value:+.3f} ({_range(row.difference)})",
                f"{sum(answer.exact for answer in at)}/{len(at)}",
                f"{row.measures.lengths[-1].ppl:.2f}",
                f"{row.measures.buckets[-1].ppl:.2f}",
                f"{short:+.3f}",
            ]
        )
    return header, rows


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "too few"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _document(found: Comparison) -> dict[str, Any]:
    import dataclasses

    return {
        "trained_length": found.trained_length,
        "target_length": found.target_length,
        "ranked_by": "mean loss of the answers at the target length, nats a token; lower is better",
        "protocol": dataclasses.asdict(found.protocol),
        "methods": [
            {
                "name": row.name,
                "plan": row.plan,
                "score": dataclasses.asdict(row.score),
                "difference": None if row.difference is None else dataclasses.asdict(row.difference),
                "measures": dataclasses.asdict(row.measures),
                "warnings": list(row.warnings),
            }
            for row in found.rows
        ],
    }


def _write(ui: Output, found: Comparison, document: dict[str, Any], report: Path, source: str) -> None:
    import json

    from ctxforge.cli.files import write_text
    from ctxforge.cli.verify_outputs import command_line
    from ctxforge.comparison import SCORE
    from ctxforge.verification.html import render_comparison

    if report.suffix == ".html":
        page = render_comparison(
            found.rows,
            trained_length=found.trained_length,
            target_length=found.target_length,
            score=SCORE,
            higher_is_better=False,
            protocol=found.protocol,
            title=f"Methods on {source}",
            command=command_line(),
        )
        write_text(report, page)
    else:
        write_text(report, json.dumps(document, indent=2) + "\n")
    ui.note(f"report: {report}")
