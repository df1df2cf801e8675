"""Figures as PNG, for places that show no SVG, such as some model cards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ctxforge.errors import ResourceError, UsageError
from ctxforge.verification.svg import light

# What stands for `sans-serif`: unlike a browser, resvg drops a text whose family is not installed.
FAMILIES = (
    "DejaVu Sans", "Liberation Sans", "Noto Sans", "Arial", "Helvetica", "Segoe UI", "Roboto", "Open Sans", "Ubuntu",
    "Cantarell", "FreeSans",
)  # fmt: skip
_PROBE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">'
    '<text x="2" y="15" font-family="sans-serif">{}</text></svg>'
)
Render = Callable[..., bytes]


def png_bytes(svg: str, width: int = 1560) -> bytes:
    """A figure of ours as PNG, in its light colours, `width` pixels wide.

    Raises:
        UsageError: the extra `report` is not installed, or a width that is not 1 to 10000.
        ResourceError: the machine has none of `FAMILIES`, so that every label would be missing.
    """
    if not 1 <= width <= 10_000:
        raise UsageError(f"a picture can't be {width} pixels wide", "give a width of 1 to 10000 pixels")
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise UsageError(
            "PNG needs the package resvg-py, which is not installed",
            "pip install 'ctxforge-llm[report]', or write the figure as .svg, which needs nothing",
        ) from None
    family = installed_family(svg_to_bytes, FAMILIES)
    return bytes(svg_to_bytes(svg_string=light(svg), width=width, sans_serif_family=family))


def installed_family(render: Render, families: Sequence[str]) -> str:
    """The first of `families` in which `render` draws a letter at all.

    Raises:
        ResourceError: none.
    """
    for family in families:
        letter, nothing = (render(svg_string=_PROBE.format(s), sans_serif_family=family) for s in ("M", ""))
        if letter != nothing:
            return family
    raise ResourceError(
        "this machine has no font that a PNG could be labelled with",
        "install one (Debian: apt install fonts-dejavu-core), or write the figure as .svg",
    )


def save_png(svg: str, path: Path | str, width: int = 1560) -> None:
    """Write a figure of ours to `path` as PNG, making its folder; `width` pixels wide, in its light colours.

    Raises:
        UsageError: the extra `report` is not installed, or a width out of range.
        ResourceError: no font, or the path can't be written.
    """
    _write(Path(path), png_bytes(svg, width))


def save_figures(folder: Path, figures: Mapping[str, str]) -> list[Path]:
    """Write every figure into `folder` as SVG and, where that is possible, as PNG twice as wide, in light colours.

    PNG needs the extra `report` and a font. Without them the SVGs are all: no path that is returned ends in `.png`.

    Args:
        folder: is made where it is missing.
        figures: SVGs of ours by name, as `figures` and `comparison_figures` give them; a name becomes a file's.

    Returns:
        What was written, figure by figure, SVG first.

    Raises:
        ResourceError: a file can't be written.
    """
    written = []
    for name, svg in figures.items():
        vector = folder / f"{name}.svg"
        _write(vector, svg.encode("utf-8"))
        written.append(vector)
        try:
            content = png_bytes(svg, 2 * figure_width(svg))
        except (UsageError, ResourceError):
            continue
        _write(vector.with_suffix(".png"), content)
        written.append(vector.with_suffix(".png"))
    return written


def figure_width(svg: str) -> int:
    """The width of a figure of ours in pixels."""
    found = re.search(r'<svg [^>]*? width="(\d+)', svg)
    assert found is not None, "not a figure of ours"
    return int(found[1])


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ResourceError(f"{path} can't be written: {error.strerror}", "give a path that can be") from None
