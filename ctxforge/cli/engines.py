"""`ctxforge engines`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.checkpoint import Checkpoint
    from ctxforge.engines import EngineVerdict
    from ctxforge.engines.run import RunResult


@click.command(
    short_help="Show which engines compute what a config means.",
    epilog="Example: ctxforge engines llama-64k --strict",
)
@click.argument("source")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub source.")
@click.option(
    "--engine", "engines", multiple=True, metavar="NAME", help='Only this engine ("vllm", "mlx"); may be repeated.'
)
@click.option("--strict", is_flag=True, help="Exit with 1 if an engine silently computes something else.")
@click.option(
    "--run", "run", is_flag=True, help="Run the engines that are installed too, and compare log-probabilities."
)
@click.option("--text", "text_path", type=click.Path(path_type=Path), help="With --run: a UTF-8 text to run on.")
@click.option("--tokens", type=click.IntRange(min=2), default=512, show_default=True, help="With --run: how many.")
@with_output
def command(
    ui: Output,
    source: str,
    revision: str | None,
    engines: tuple[str, ...],
    strict: bool,
    run: bool,
    text_path: Path | None,
    tokens: int,
) -> int:
    """Show what each serving engine makes of SOURCE: whether it computes the rotation that the config means, which
    flags it takes, what it computes instead, or that it refuses; and the command that serves it.

    By the rules of each engine's own reader, compared with transformers 5 in frequencies and temperature; "measured"
    marks what a run of this form has shown as well. No weight is read, unless --run is given.
    """
    from ctxforge.engines import report
    from ctxforge.errors import ExitCode
    from ctxforge.sources import resolve_source

    path = resolve_source(source)
    checkpoint = _read(path, revision)
    found = report(checkpoint.config, folder=path, engines=engines)
    ui.heading(source)
    ui.table(
        ("engine", "versions", "verdict", "what, or with which flags", "known"),
        [(row.engine, row.versions, row.verdict, _what(row), row.evidence) for row in found.rows],
    )
    _commands(ui, found.rows)
    runs = _run(ui, checkpoint, engines, text_path, tokens) if run else []
    wrong = [f"{row.engine} {row.versions}" for row in found.silently_wrong]
    differing = [result.engine for result in runs if result.status == "differs"]
    failed = strict and bool(wrong or differing)
    document: dict[str, Any] = {
        "source": source,
        "engines": [dataclasses.asdict(row) for row in found.rows],
        "silently_wrong": wrong,
    }
    if run:
        document["runs"] = [dataclasses.asdict(result) for result in runs]
    ui.document("failed" if failed else "ok", document)
    return ExitCode.CHECK_FAILED if failed else ExitCode.OK


def _read(source: str, revision: str | None) -> Checkpoint:
    from ctxforge.checkpoint import read_checkpoint
    from ctxforge.errors import UsageError

    checkpoint = read_checkpoint(source, revision=revision)
    if checkpoint.weights == "gguf":
        raise UsageError(
            f"{source} is a GGUF file, which llama.cpp alone reads", "give the folder that it was converted from"
        )
    return checkpoint


def _what(row: EngineVerdict) -> str:
    return "; ".join((*((" ".join(row.flags),) if row.flags else ()), *((row.detail,) if row.detail else ())))


def _commands(ui: Output, rows: Sequence[EngineVerdict]) -> None:
    """One command an engine, for those that compute the right thing, or would once the file is patched."""
    commands: dict[str, str] = {}
    for row in rows:
        serves = row.verdict in ("honours", "honours with flags") or "ctxforge gguf" in row.serve_command
        if serves and row.engine not in commands:
            commands[row.engine] = row.serve_command
    if commands:
        ui.heading("to serve it")
        for name, line in commands.items():
            ui.text(f"  {name}: {line}")


def _run(
    ui: Output, checkpoint: Checkpoint, engines: tuple[str, ...], text_path: Path | None, tokens: int
) -> list[RunResult]:
    """The installed engines' own log-probabilities."""
    from ctxforge.checkpoint import fetch
    from ctxforge.cli.files import read_text
    from ctxforge.engines.run import run_engines

    local = checkpoint if checkpoint.root is not None and checkpoint.weights == "safetensors" else fetch(checkpoint)
    assert local.root is not None
    text = None if text_path is None else read_text(text_path, str(local.root))
    with ui.steps("engines") as progress:
        results = run_engines(local.root, _runners(engines), text=text, tokens=tokens, progress=progress)
    ui.heading("runs")
    ui.table(
        ("engine", "version", "status", "max difference", "mean", "tokens", "what"),
        [
            (
                result.engine,
                result.version or "-",
                result.status,
                "-" if result.max_difference is None else f"{result.max_difference:.2g}",
                "-" if result.mean_difference is None else f"{result.mean_difference:.2g}",
                str(result.tokens),
                result.detail,
            )
            for result in results
        ],
    )
    return results


def _runners(engines: tuple[str, ...]) -> tuple[str, ...]:
    """The runnable engines among those asked for; all of them when none is named."""
    from ctxforge.engines.registry import find_engines
    from ctxforge.engines.run import RUNNERS
    from ctxforge.errors import UsageError

    if not engines:
        return ()
    runnable = {engine.runs[0] for engine in find_engines(engines) if engine.runs is not None}
    if not runnable:
        raise UsageError(f"none of {', '.join(engines)} can be run here", f"--run runs: {', '.join(RUNNERS)}")
    return tuple(name for name in RUNNERS if name in runnable)
