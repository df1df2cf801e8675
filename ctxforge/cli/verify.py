"""`ctxforge verify`."""

from __future__ import annotations

from pathlib import Path

import click

from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="Measure perplexity and retrieval at the target length.",
    epilog="Example: ctxforge verify llama-64k --source meta-llama/Llama-2-7b-hf --text book.txt --plot curve.svg",
)
@click.argument("folder")
@click.option("--source", metavar="SRC", help="The checkpoint it was made from, measured on the same tokens.")
@click.option(
    "--text",
    "text_path",
    type=click.Path(path_type=Path),
    help="UTF-8 text, at least as long as the target. Default for models made from `bundled`: the held-out text.",
)
@click.option("--to", metavar="LENGTH", help="Target length; default: the one that the conversion recorded.")
@click.option("--trained-length", metavar="LENGTH", help="Trained length; default: the one that was recorded.")
@click.option("--lengths", metavar="L1,L2,...", help="Report these lengths; default: powers of two.")
@click.option("--buckets", type=int, default=8, show_default=True, help="Position buckets up to the target.")
@click.option("--windows", type=int, default=1, show_default=True, help="Windows of the target length to average.")
@click.option("--needles", type=int, default=10, show_default=True, help="Depth strata of the retrieval grid.")
@click.option("--seeds", type=int, default=2, show_default=True, help="Haystacks of the retrieval grid.")
@click.option("--retrieval/--no-retrieval", default=True, show_default=True, help="Measure the retrieval grid.")
@click.option("--source-curve/--no-source-curve", default=True, help="Run the source up to the target too.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the modeling code inside FOLDER (and SOURCE). Read it first."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write perplexity by position as SVG.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the report as JSON.")
@with_output
def command(
    ui: Output,
    folder: str,
    source: str | None,
    text_path: Path | None,
    to: str | None,
    trained_length: str | None,
    lengths: str | None,
    buckets: int,
    windows: int,
    needles: int,
    seeds: int,
    retrieval: bool,
    source_curve: bool,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """Measure FOLDER: perplexity of a text at every length from one pass, retrieval, and what short text lost.

    One full-length pass without a KV cache gives every shorter length; retrieval plants needles at stratified depths
    and scores the answers teacher-forced, which equals greedy decoding.
    """
    from ctxforge import pipeline
    from ctxforge.cli.files import read_text, write_text
    from ctxforge.lengths import parse_length
    from ctxforge.verification import VerifySettings, curves_of, plot_svg, render_table

    settings = VerifySettings(
        lengths=None if lengths is None else tuple(parse_length(part) for part in lengths.split(",")),
        buckets=buckets,
        documents=windows,
        needles=needles,
        seeds=seeds,
        retrieval=retrieval,
        source_curve=source_curve,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    text = read_text(text_path, folder)
    with ui.steps() as progress:
        found = pipeline.verify(
            Path(folder),
            text=text,
            source=source,
            trained_length=None if trained_length is None else parse_length(trained_length),
            target_length=None if to is None else parse_length(to),
            settings=settings,
            progress=progress,
        )
    for title, header, rows in render_table(found):
        ui.heading(title)
        ui.table(header, rows)
    if plot is not None:
        protocol = found.protocol
        write_text(plot, plot_svg(curves_of(found), protocol.trained_length, target_length=protocol.target_length))
        ui.note(f"plot: {plot}")
    document = found.to_dict()
    if report is not None:
        import json

        write_text(report, json.dumps(document, indent=2) + "\n")
        ui.note(f"report: {report}")
    ui.document("ok", {"report": document})
