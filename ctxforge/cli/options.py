"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ctxforge.recipe import ConversionRecipe


def conversion_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Source, method and lengths: what `extend` and `plan` both need."""
    decorators = (
        click.argument("source"),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub source."),
        click.option(
            "--method",
            "-m",
            metavar="NAME[+MODIFIER][:key=value,...]",
            help="A method of `ctxforge methods`; may be left out with --attach.",
        ),
        click.option(
            "--attach",
            "attach",
            multiple=True,
            metavar="NAME[:key=value,...]",
            help="Give the result an attention system of `ctxforge attachments`.",
        ),
        click.option("--to", metavar="LENGTH", help="Target length: 64k, 8x or 65536."),
        click.option("--param", "-p", "parameters", multiple=True, metavar="KEY=VALUE", help="A method's parameter."),
        click.option(
            "--temperature",
            type=float,
            metavar="A",
            help="Replace the method's temperature a (on cos and sin); what the config can't say is folded into q.",
        ),
        click.option(
            "--original-length",
            metavar="LENGTH",
            help="Start over from this trained length, dropping any scaling in force.",
        ),
        click.option(
            "--trained-length",
            metavar="LENGTH",
            help="The length that the source works at now, where its config doesn't tell.",
        ),
        click.option(
            "--portability",
            type=click.Choice(["widest", "exact", "transformers"]),
            default="widest",
            show_default=True,
            help="widest: what most engines compute, the temperature folded into q where they disagree on it; exact:"
            " weights untouched, the temperature in config keys; transformers: its own types, weights untouched.",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def build_recipe(
    source: str,
    revision: str | None,
    method: str | None,
    attach: tuple[str, ...],
    to: str | None,
    parameters: tuple[str, ...],
    temperature: float | None,
    original_length: str | None,
    trained_length: str | None,
    portability: str,
) -> ConversionRecipe:
    """The recipe that the shared options describe."""
    from ctxforge.errors import UsageError
    from ctxforge.recipe import ConversionRecipe, parse_attachment, parse_method

    if method is None and not attach:
        raise UsageError("neither a method nor an attachment was chosen", "write --method yarn, say (ctxforge methods)")
    if len(attach) > 1:
        raise UsageError(f"--attach is given {len(attach)} times: a checkpoint takes one attention system", "keep one")
    if attach and not attach[0].partition(":")[0].strip():
        raise UsageError("--attach names no attachment", "write --attach NAME[:key=value,...] (ctxforge attachments)")
    return ConversionRecipe(
        source=source,
        revision=revision,
        method=parse_method(method or "none", parameters, temperature),
        attach=parse_attachment(attach[0]) if attach else None,
        to=to,
        original_length=original_length,
        trained_length=trained_length,
        portability=portability,
    )


def bytes_text(count: int) -> str:
    """A byte count with a unit, three significant digits."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
