"""The one door for output: the result on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from ctxforge.cli.main import SCHEMA_VERSION

_QUIET_FOR = 2.0
_LINE_EVERY = 30.0


@dataclass(frozen=True)
class Output:
    """How a command speaks: human or JSON, quiet or not."""

    command: str
    as_json: bool
    quiet: bool

    def document(self, status: str, content: dict[str, Any]) -> None:
        """The result as one JSON document, when --json was given."""
        if self.as_json:
            head = {"schema_version": SCHEMA_VERSION, "command": self.command, "status": status}
            click.echo(json.dumps({**head, **content}, indent=2, ensure_ascii=False))

    def text(self, text: str) -> None:
        """Human-readable result."""
        if not self.as_json:
            click.echo(text)

    def heading(self, text: str) -> None:
        """A heading of the human-readable result."""
        if not self.as_json:
            click.secho(f"\n{text}", bold=True)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Aligned name and value lines."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.text(f"  {name:<{width}}  {value}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; columns of figures are aligned right, others left."""
        if self.as_json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            figures = i > 0 and all(row[i][:1].isdigit() or row[i][:1] in "+-" for row in rows)
            table.add_column(name, justify="right" if figures else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console = Console(file=sys.stdout)
        if not sys.stdout.isatty():
            console = Console(file=sys.stdout, width=max(120, console.width))
        console.print(table)

    def note(self, text: str) -> None:
        """A remark on stderr."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """A warning on stderr; quiet does not silence it."""
        click.secho(f"Warning: {text}", err=True, fg="yellow")

    @contextmanager
    def steps(self, unit: str = "steps") -> Iterator[Callable[[str, int, int], None]]:
        """A progress callback `(what, done, total)`: a bar on a terminal after two seconds, sparse lines elsewhere."""
        if self.quiet or os.environ.get("CTXFORGE_NO_PROGRESS"):
            yield lambda _what, _done, _total: None
            return
        if not sys.stderr.isatty():
            yield _sparse_lines()
            return
        start = time.monotonic()
        shown: list[Any] = []

        def bar(what: str, done: int, total: int) -> None:
            if not shown:
                if time.monotonic() - start < _QUIET_FOR:
                    return
                shown.append(_start_bar(what, unit, total))
            progress, task = shown[0]
            progress.update(task, description=what, completed=done, total=total)

        try:
            yield bar
        finally:
            for progress, _task in shown:
                progress.stop()

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A progress callback `(bytes done, bytes in all)`."""
        with self.steps("bytes") as step:
            yield lambda done, total: step(label, done, total)


def _sparse_lines() -> Callable[[str, int, int], None]:
    last = [time.monotonic()]

    def line(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > _LINE_EVERY:
            last[0] = time.monotonic()
            click.echo(f"{what}: {100 * done // max(total, 1)} %", err=True)

    return line


def _start_bar(label: str, unit: str, total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn(), console=Console(stderr=True)
    )
    progress.start()
    return progress, progress.add_task(label, total=total)


def with_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json` and `--quiet`, and hand it an `Output` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr.")
    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        name = click.get_current_context().info_name or ""
        if quiet or as_json:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        return function(Output(name, as_json, quiet), *args, **kwargs)

    return wrapper
