"""Text of others inside Markdown: what is put into a template stays text, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ctxforge.errors import InternalError
from ctxforge.templates_dir import templates_dir
from ctxforge.verification.outputs.plain import line

if TYPE_CHECKING:
    from jinja2 import Environment

# An underscore between letters means nothing, nor does an ampersand that begins no entity.
_PUNCTUATION = re.compile(r"[\\`*\[\]<|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=[#A-Za-z])")
# What would begin a list, a quotation, a heading or a rule at the start of a line.
_BLOCK = re.compile(r"[-+=#]+(?= |$)|>|[0-9]{1,9}(?=[.)](?: |$))")
_LONGEST = 2000


class Markdown(str):
    """Markdown that was made here; everything else that reaches a template is escaped."""

    __slots__ = ()


def escape(value: object) -> Markdown:
    """`value` on one line, as literal text anywhere in Markdown, in a table's cell too; cut where it is very long.

    Backslashes before punctuation (CommonMark 0.31, section 2.4), so that the file stays readable.
    """
    if isinstance(value, Markdown):
        return value
    text = line(str(value))
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    text = _PUNCTUATION.sub(lambda match: "\\" + match[0], text)
    start = _BLOCK.match(text)
    if start is None:
        return Markdown(text)
    marker = start[0]
    rest = text[start.end() :]
    return Markdown(f"{marker}\\{rest}" if marker[0].isdigit() else "".join("\\" + c for c in marker) + rest)


def code(value: object) -> Markdown:
    """`value` as inline code; as plain text where it holds what would end that, or a table's cell."""
    text = line(str(value))
    if not text or len(text) > _LONGEST or any(mark in text for mark in "`|\\"):
        return escape(value)
    return Markdown(f"`{text}`")


def fenced(text: str, language: str) -> Markdown:
    """A block of code behind a fence longer than any in it; characters that don't print become U+FFFD."""
    lines = ["".join(c if c.isprintable() else "\ufffd" for c in part) for part in text.splitlines()]
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown("\n".join([f"{fence}{language}", *lines, fence]))


def table(header: Sequence[object], rows: Sequence[Sequence[object]], *, numeric: bool = False) -> Markdown:
    """A table; `numeric` aligns all but the first column to the right."""
    if not rows:
        return Markdown("")
    marks = ["---", *(["--:" if numeric else "---"] * (len(header) - 1))]
    lines = [header, *rows]
    drawn = ["| " + " | ".join(escape(cell) for cell in cells) + " |" for cells in lines]
    drawn.insert(1, "|" + "|".join(marks) + "|")
    return Markdown("\n".join(drawn))


def render(template: str, /, **values: Any) -> str:
    """A template of templates/model_card, filled.

    Raises:
        InternalError: this installation lacks it.
    """
    return environment().get_template(template).render(**values)


@cache
def environment() -> Environment:
    """The templates of `templates/model_card`: whatever is put into them is escaped unless it is `Markdown`.

    Raises:
        InternalError: this installation lacks them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = templates_dir() / "model_card"
    if not folder.is_dir():
        raise InternalError("this installation of ctxforge has no model card templates", "install ctxforge again")
    made = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escape,
    )
    made.filters["code"] = code
    return made
