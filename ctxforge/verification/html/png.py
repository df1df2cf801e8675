"""Figures as PNG, for places that show no SVG, such as some model cards."""

from __future__ import annotations

from pathlib import Path

from ctxforge.errors import ResourceError, UsageError
from ctxforge.verification.svg import light

# The font that resvg falls back to: there is no browser here to choose one.
_FAMILY = "DejaVu Sans"
_PROBE = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><text x="2" y="15">{}</text></svg>'


def png_bytes(svg: str, width: int = 1560) -> bytes:
    """A figure of ours as PNG, in its light colours, `width` pixels wide.

    Raises:
        UsageError: the extra `report` is not installed, or a width that is not 1 to 10000.
        ResourceError: the machine has no font, so that every label would be missing.
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
    if svg_to_bytes(svg_string=_PROBE.format("M")) == svg_to_bytes(svg_string=_PROBE.format("")):
        raise ResourceError(
            "this machine has no font, so that a PNG would lack its labels",
            "install one (Debian: apt install fonts-dejavu-core), or write the figure as .svg",
        )
    return bytes(svg_to_bytes(svg_string=light(svg), width=width, font_family=_FAMILY, sans_serif_family=_FAMILY))


def save_png(svg: str, path: Path | str, width: int = 1560) -> None:
    """Write a figure of ours to `path` as PNG, making its folder; `width` pixels wide, in its light colours.

    Raises:
        UsageError: the extra `report` is not installed, or a width out of range.
        ResourceError: no font, or the path can't be written.
    """
    content, path = png_bytes(svg, width), Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ResourceError(f"{path} can't be written: {error.strerror}", "give a path that can be") from None
