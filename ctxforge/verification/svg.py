"""What the package's figures share: one frame, one style sheet, light and dark by the reader's own setting."""

from __future__ import annotations

from html import escape

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# Okabe and Ito's palette, distinguishable with every common colour vision; black gives way to the ink colour.
_LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#b8488f", "#8a6d00", "#3a8fc7", "#555555", "#7a3fb0")
_DARK = ("#4db2ff", "#ff8a3d", "#2fd0a0", "#f08fc8", "#f0d24a", "#9fd8ff", "#bbbbbb", "#c79bff")
SERIES = len(_LIGHT)


def text(x: float, y: float, content: str, *, css: str = "", anchor: str = "start", turn: float | None = None) -> str:
    """A text element at (x, y); `css` names classes, `turn` rotates about the point, in degrees."""
    rotate = "" if turn is None else f' transform="rotate({turn:g} {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}"{rotate}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line with the classes in `css`."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def document(width: float, height: float, title: str, description: str, parts: list[str]) -> str:
    """A self-contained SVG: no script, no network, readable by a screen reader through title and description."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" style="max-width:100%;height:auto" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>",
            f"<style>{_style()}</style>",
            f'<rect x="0" y="0" width="{width:g}" height="{height:g}" class="paper"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _style() -> str:
    rules = [
        f"text{{font-family:{FONT};font-size:13px;fill:#24292f}}",
        ".title{font-size:16px;font-weight:600}.small{font-size:12px}.soft{fill:#57606a}",
        ".paper{fill:#ffffff}.grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#57606a;stroke-width:1}",
        ".mark{stroke:#57606a;stroke-width:1.5;stroke-dasharray:6 4}",
        ".curve{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}",
        *(f".s{i}{{stroke:{colour}}}.d{i}{{fill:{colour}}}" for i, colour in enumerate(_LIGHT)),
    ]
    dark = [
        "text{fill:#e6edf3}.soft{fill:#9aa4ae}.paper{fill:#0d1117}.grid{stroke:#2b323a}.axis,.mark{stroke:#9aa4ae}",
        *(f".s{i}{{stroke:{colour}}}.d{i}{{fill:{colour}}}" for i, colour in enumerate(_DARK)),
    ]
    return "".join(rules) + "@media (prefers-color-scheme: dark){" + "".join(dark) + "}"
