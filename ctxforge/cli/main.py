"""The entry point: lazily imported commands, and every failure as two lines and an exit code.

`ctxforge --help` must not import torch, nor rich, nor any command: the table below repeats the commands' short help,
and a test holds the two equal.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from typing import Any

import click

from ctxforge.errors import CtxforgeError, ExitCode, one_line

SCHEMA_VERSION = 1

COMMANDS = {
    "extend": "Convert a checkpoint to a longer context.",
    "plan": "Show what extend would do, without doing it.",
    "inspect": "Show what a checkpoint's RoPE really is.",
    "calibrate": "Fine-tune an extended checkpoint, and merge the result.",
    "check": "Check checkpoints statically, for CI.",
    "diff": "Show how two checkpoints differ.",
    "engines": "Show which engines compute what a config means.",
    "verify": "Measure perplexity and retrieval, and judge them by gates.",
    "compare": "Measure several methods on one model and rank them.",
    "card": "Show the model card that a folder would be published with.",
    "push": "Publish a checkpoint folder on the Hub, in one commit.",
    "run": "Run the jobs of a batch file.",
    "gguf": "Give a converted GGUF the rotation that conversion lost.",
    "methods": "List the methods, or explain one.",
    "attachments": "List the attention systems, or explain one.",
    "schema": "Print the JSON Schema of batch files.",
    "templates": "List files to start from, or write one.",
    "demo": "Extend the bundled model with several methods and compare.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they run, not when help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ctxforge.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a hint at the nearest command for a misspelt one."""
        name = args[0] if args else ""
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from `COMMANDS` alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ctxforge.version import __version__

        click.echo(f"ctxforge {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CTXFORGE"},
    epilog='Completion: eval "$(_CTXFORGE_COMPLETE=bash_source ctxforge)" (or zsh_source, fish_source).',
)
@click.option(
    "--version", is_flag=True, callback=_show_version, expose_value=False, is_eager=True, help="Show the version."
)
def cli() -> None:
    """Take a language model's checkpoint and emit one that works at a longer context.

    Plans, proves, converts and verifies in one step:

        ctxforge extend meta-llama/Llama-2-7b-hf --method yarn --to 64k --out llama-64k
    """


def main() -> None:
    """Run the command line and exit with the documented code; a traceback only with CTXFORGE_DEBUG=1."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = cli.main(prog_name="ctxforge", standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.OK
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.OK
    except Exception as error:
        if os.environ.get("CTXFORGE_DEBUG"):
            raise
        code = _report(error)
        _leave_group(code)
    except KeyboardInterrupt:
        code = _fail("interrupted", "run the same command again; nothing half-written was left", ExitCode.INTERRUPTED)
        _leave_group(code)
    sys.exit(int(code))


def _leave_group(code: int) -> None:
    """End a failed process at once where it is one of several.

    The exception holds the training's process group, whose destructor may wait for peers that are gone.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def _interrupt(_signal: int, _frame: object) -> None:
    """A polite kill ends like Ctrl-C: what was staged is removed."""
    raise KeyboardInterrupt


def _report(error: Exception) -> int:
    """One line of cause, one of remedy, on stderr; with --json, the same as a document on stdout."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, CtxforgeError):
        return _fail(error.cause, error.remedy, error.exit_code)
    if isinstance(error, click.Abort):
        return _fail("interrupted", "run the same command again", ExitCode.INTERRUPTED)
    if isinstance(error, click.ClickException):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ctxforge"
        return _fail(error.format_message(), f"see {command} --help", ExitCode.USAGE)
    if isinstance(error, MemoryError):
        return _fail("out of memory", "use a machine with more memory, or a shorter length", ExitCode.RESOURCES)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail("out of disk", "free some space and run the same command again", ExitCode.RESOURCES)
    if isinstance(error, OSError):
        return _fail(f"{error.strerror or error}: {error.filename or ''}", "check the path and its permissions", 5)
    return _fail(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect of ctxforge: run again with CTXFORGE_DEBUG=1 and report the traceback",
        ExitCode.INTERNAL,
    )


def _fail(cause: str, remedy: str, code: int) -> int:
    cause, remedy = one_line(cause), one_line(remedy)
    click.echo(f"Error: {cause}", err=True)
    click.echo(f"Hint: {remedy}", err=True)
    if "--json" in sys.argv[1:] and os.environ.get("RANK", "0") in ("", "0"):  # one document, of several processes too
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "command": next((word for word in sys.argv[1:] if word in COMMANDS), None),
            "status": "error",
            "error": {"cause": cause, "remedy": remedy, "exit_code": int(code)},
        }
        click.echo(json.dumps(document, indent=2))
    return int(code)
