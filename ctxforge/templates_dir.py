"""Where the templates are: inside the wheel, or beside the package in a source checkout."""

from __future__ import annotations

from pathlib import Path

from ctxforge.errors import InternalError


def templates_dir() -> Path:
    """The folder of templates.

    Raises:
        InternalError: this installation has none.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "modeling").is_dir():
            return folder
    raise InternalError("this installation of ctxforge has no templates", "install ctxforge again")


def modeling_file(name: str) -> bytes:
    """The bytes of one file of templates/modeling.

    Raises:
        InternalError: this installation lacks it.
    """
    path = templates_dir() / "modeling" / name
    if not path.is_file():
        raise InternalError(f"this installation of ctxforge has no {name}", "install ctxforge again")
    return path.read_bytes()
