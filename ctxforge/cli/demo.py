"""`ctxforge demo`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="Extend the bundled model with several methods and compare.", epilog="Example: ctxforge demo --out demo"
)
@click.option("--out", "-o", type=click.Path(path_type=Path), default=Path("ctxforge-demo"), show_default=True)
@click.option("--to", default="4x", show_default=True, metavar="LENGTH", help="Target length.")
@with_output
def command(ui: Output, out: Path, to: str) -> None:
    """Extend the bundled byte-level Llama with several methods, measure each, print the comparison, write the plot."""
    from ctxforge import demo
    from ctxforge.cli.files import write_text
    from ctxforge.verification import plot_svg
    from ctxforge.verification.plot import curve_of

    with ui.steps() as progress:
        shown = demo.run(out, to=to, progress=progress)
    curves = [curve_of(found, "unmodified" if name == "none" else name) for name, found in shown.measures.items()]
    plot = out / "perplexity.svg"
    write_text(plot, plot_svg(curves, shown.trained_length, target_length=shown.target_length))
    ui.heading(f"Bundled model, {shown.trained_length} -> {shown.target_length} tokens, weights untouched, no training")
    ui.table(shown.header(), shown.rows())
    ui.text(f"plot: {plot}")
    ui.text(f"checkpoints: {', '.join(str(folder) for folder in shown.folders.values())}")
    header = shown.header()
    rows = [dict(zip(header, row, strict=True)) for row in shown.rows()]
    write_text(out / "comparison.json", json.dumps(rows, indent=2) + "\n")
    ui.document(
        "ok",
        {
            "trained_length": shown.trained_length,
            "target_length": shown.target_length,
            "comparison": rows,
            "plot": str(plot),
        },
    )
