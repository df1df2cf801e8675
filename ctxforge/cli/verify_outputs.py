"""What `ctxforge verify` writes beside its tables: plot, report, JUnit, figures, the step summary of a CI."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.cli.files import write_text
from ctxforge.cli.output import Output

if TYPE_CHECKING:
    from ctxforge.verification import VerifyReport


@dataclass(frozen=True)
class Outputs:
    """Where the user wants what; None for nothing.

    Attributes:
        plot: perplexity by position, as SVG.
        report: the report, as HTML or JSON by its suffix.
        junit: the gates as JUnit XML.
        figures: a folder for all figures of the report.
    """

    plot: Path | None
    report: Path | None
    junit: Path | None
    figures: Path | None

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Everything that will be written, a file in the folder of figures among it."""
        return self.plot, self.report, self.junit, None if self.figures is None else self.figures / "perplexity.svg"


def write_outputs(ui: Output, found: VerifyReport, folder: str, outputs: Outputs) -> None:
    """Write what was asked for, and say where it is."""
    from ctxforge.verification import curves_of, plot_svg
    from ctxforge.verification.outputs import annotate, append_summary, junit_xml, summary_markdown

    judgement, protocol = found.judgement, found.protocol
    assert judgement is not None
    if outputs.plot is not None:
        drawn = plot_svg(curves_of(found), protocol.trained_length, target_length=protocol.target_length)
        write_text(outputs.plot, drawn)
        ui.note(f"plot: {outputs.plot}")
    if outputs.report is not None:
        as_page = outputs.report.suffix == ".html"
        write_text(outputs.report, _page(found, folder) if as_page else json.dumps(found.to_dict(), indent=2))
        ui.note(f"report: {outputs.report}")
    if outputs.junit is not None:
        write_text(outputs.junit, junit_xml(judgement, name=f"ctxforge verify {folder}"))
        ui.note(f"JUnit: {outputs.junit}")
    if outputs.figures is not None:
        from ctxforge.verification.html.figures import figures

        write_figures(ui, outputs.figures, figures(found, plan=_plan(folder)))
    append_summary(summary_markdown(judgement, title=f"ctxforge verify {folder}", effective=found.effective))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotate(judgement):
            sys.stderr.write(line + "\n")


def write_figures(ui: Output, folder: Path, drawn: dict[str, str]) -> None:
    """Write figures as SVG and, where the rasteriser is installed, as PNG."""
    from ctxforge.verification.html.png import save_figures

    written = save_figures(folder, drawn)
    ui.note(f"figures: {', '.join(path.name for path in written)} in {folder}")
    if drawn and not any(path.suffix == ".png" for path in written):
        ui.note("no PNG: that needs resvg-py (pip install resvg-py)")


def _plan(folder: str) -> dict[str, Any] | None:
    from ctxforge.checkpoint import read_checkpoint
    from ctxforge.provenance import FILE_NAME
    from ctxforge.sources import resolve_source

    record = read_checkpoint(resolve_source(folder)).json_files.get(FILE_NAME) or {}
    plan = record.get("plan")
    return plan if isinstance(plan, dict) else None


def _page(found: VerifyReport, folder: str) -> str:
    from ctxforge.verification.html import render_report

    return render_report(found, plan=_plan(folder), title=Path(folder).name, command=command_line())


def command_line() -> str:
    """The command as it was typed, for the report; the arguments of `ctxforge` only."""
    import shlex

    return shlex.join(["ctxforge", *sys.argv[1:]])
