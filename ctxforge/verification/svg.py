"""What the package's figures share: one frame, one style sheet, light and dark by the reader's own setting."""

from __future__ import annotations

from html import escape

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# Okabe and Ito's palette, distinguishable with every common colour vision; black gives way to the ink colour.
_LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#b8488f", "#8a6d00", "#3a8fc7", "#555555", "#7a3fb0")
_DARK = ("#4db2ff", "#ff8a3d", "#2fd0a0", "#f08fc8", "#f0d24a", "#9fd8ff", "#bbbbbb", "#c79bff")
SERIES = len(_LIGHT)
# Styles are scoped by it: in a page, several figures and the page's own text stand side by side.
FIGURE = "ctxforge-figure"
NARROW = 360.0
WIDE = 780.0


def text(
    x: float,
    y: float,
    content: str,
    *,
    css: str = "",
    anchor: str = "start",
    turn: float | None = None,
) -> str:
    """A text element at (x, y); `css` names classes, `turn` rotates about the point in degrees."""
    rotate = "" if turn is None else f' transform="rotate({turn:g} {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}"{rotate}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line with the classes in `css`."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def text_width(content: str, size: float = 13.0) -> float:
    """About how many pixels a text takes, on the wide side of the fonts in `FONT`."""
    return 0.6 * size * len(content)


def document(width: float, height: float, title: str, description: str, parts: list[str]) -> str:
    """A self-contained SVG: no script, no network, readable by a screen reader through title and description."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{FIGURE}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" style="max-width:100%;height:auto" role="img" '
            f'aria-label="{escape(f"{title}. {description}")}">',
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>",
            f"<style>{style()}</style>",
            f'<rect x="0" y="0" width="{width:g}" height="{height:g}" class="paper"/>',
            *parts,
            "</svg>\n",
        ]
    )


def footnote(note: str, y: float, width: float, *, shown: bool) -> list[str]:
    """A line below a figure that stands alone; nothing where it is not `shown`, is empty or has no room."""
    return [text(8.0, y, note, css="small soft")] if shown and note and text_width(note, 12) <= width - 16 else []


def without_style(svg: str) -> str:
    """The figure without its style sheet, for a page that holds `style()` itself."""
    start, _, rest = svg.partition("<style>")
    return start + rest.partition("</style>")[2]


def light(svg: str) -> str:
    """The figure in its light colours alone, for renderers that know no media queries."""
    start, found, rest = svg.partition("@media (prefers-color-scheme: dark)")
    return start + "</style>" + rest.partition("</style>")[2] if found else svg


def style() -> str:
    """The style sheet of all figures."""
    rules = [
        f" text{{font-family:{FONT};font-size:13px;fill:#24292f}}",
        " .title{font-size:16px;font-weight:600}",
        " .small{font-size:12px}",
        " .soft{fill:#57606a}",
        " .halo{paint-order:stroke;stroke:#ffffff;stroke-width:4px;stroke-linejoin:round}",
        " .paper{fill:#ffffff}",
        " .grid{stroke:#d8dee4;stroke-width:1}",
        " .axis{stroke:#57606a;stroke-width:1}",
        " .mark{stroke:#57606a;stroke-width:1.5;stroke-dasharray:6 4}",
        " .curve{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}",
        " .reference{stroke:#57606a;stroke-width:1.25}",
        " .thin{stroke-width:1.5}",
        " .base{stroke:#24292f}",
        " .ink{fill:#24292f}",
        " .hollow{fill:#ffffff;stroke:#24292f;stroke-width:1.5}",
        " .leader{fill:none;stroke:#8c959f;stroke-width:1}",
        " .others{fill:none;stroke:#c4cad0;stroke-width:1}",
        " .strong{font-weight:600}",
        " .band{opacity:0.2;stroke:none}",
        *(f" .s{i}{{stroke:{colour}}}" for i, colour in enumerate(_LIGHT)),
        *(f" .d{i}{{fill:{colour}}}" for i, colour in enumerate(_LIGHT)),
    ]
    dark = [
        " text{fill:#e6edf3}",
        " .soft{fill:#9aa4ae}",
        " .halo{stroke:#0d1117}",
        " .paper{fill:#0d1117}",
        " .grid{stroke:#2b323a}",
        " .axis{stroke:#9aa4ae}",
        " .mark{stroke:#9aa4ae}",
        " .reference{stroke:#9aa4ae}",
        " .base{stroke:#e6edf3}",
        " .ink{fill:#e6edf3}",
        " .hollow{fill:#0d1117;stroke:#e6edf3}",
        " .leader{stroke:#6e7681}",
        " .others{stroke:#3d444d}",
        " .band{opacity:0.28}",
        *(f" .s{i}{{stroke:{colour}}}" for i, colour in enumerate(_DARK)),
        *(f" .d{i}{{fill:{colour}}}" for i, colour in enumerate(_DARK)),
    ]
    return f"{_scoped(rules)}@media (prefers-color-scheme: dark){{{_scoped(dark)}}}"


def _scoped(rules: list[str]) -> str:
    return "".join(f".{FIGURE}{rule}" for rule in rules)
