"""The report pages in a real browser: nothing overflows, overlaps, is cut off or fades, on phones and in the dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.verification import smollm2_comparison
from tests.verification.test_html import awkward, compared, comparison_rows, full, rendered

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
)
SCHEMES = {"light": "1", "dark": "0"}
PAGES = {
    "report": rendered,
    "full": full,
    "comparison": compared,
    "methods": lambda: compared(comparison_rows(tuple(f"method-{i}+with-a-long-name" for i in range(10)))),
    "smollm2": smollm2_comparison.page,
    "awkward": lambda: awkward("organisation/" + "A-very-long-model-name-" * 9),
}

# Runs in a copy of the page: what a reader could not read. The page itself holds no script.
LOOK = r"""
document.querySelectorAll("details").forEach(d => { d.open = true; });
const found = {width: innerWidth, fetched: performance.getEntriesByType("resource").map(e => e.name),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  paper: getComputedStyle(document.body).backgroundColor, verdict: document.querySelector(".verdict").innerText,
  cut: [], overlapping: [], faint: [], small: [], outside: [], figures: 0, texts: 0};
const numbers = c => (c.match(/[\d.]+/g) || []).map(Number);
const light = c => { const [r, g, b] = numbers(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    const n = numbers(c); if (n.length === 3 || n[3] === 1) return c; } return "rgb(255,255,255)"; };
const seen = e => e.getClientRects().length > 0;
for (const e of document.body.querySelectorAll("*")) {
  if (!seen(e) || e.closest("svg")) continue;
  const own = [...e.childNodes].filter(n => n.nodeType === 3 && n.textContent.trim());
  if (!own.length || e.tagName === "SCRIPT") continue;
  found.texts += 1;
  const style = getComputedStyle(e), words = own[0].textContent.trim().slice(0, 40);
  if (contrast(style.color, behind(e)) < 4.5) found.faint.push(words);
  if (parseFloat(style.fontSize) < 12) found.small.push(words);
  const box = e.getBoundingClientRect();
  if (!e.closest(".scroll") && !e.closest("thead") && (box.left < 0 || box.right > innerWidth + 0.5))
    found.outside.push(words);
}
for (const svg of document.querySelectorAll("svg")) {
  if (!seen(svg)) continue;
  found.figures += 1;
  const frame = svg.getBoundingClientRect(), labels = [];
  for (const t of svg.querySelectorAll("text")) {
    const box = t.getBoundingClientRect(), words = t.textContent, style = getComputedStyle(t);
    if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      found.cut.push(words);
    const scale = frame.width / svg.viewBox.baseVal.width;
    if (parseFloat(style.fontSize) * scale < 9) found.small.push(words);
    const cell = t.parentElement.querySelector(":scope > rect");
    const paper = t.parentElement.tagName === "g" && cell ? getComputedStyle(cell).fill : behind(svg);
    if (contrast(style.fill, paper) < 4.5) found.faint.push(words);
    for (const other of labels) if (box.left < other.right - 1 && other.left < box.right - 1 &&
        box.top < other.bottom - 3 && other.top < box.bottom - 3) found.overlapping.push([other.words, words]);
    labels.push({left: box.left, right: box.right, top: box.top, bottom: box.bottom, words});
  }
}
const note = document.createElement("pre");
note.id = "found";
note.textContent = JSON.stringify(found);
parent.document.body.append(note);
"""


def chromium(folder: Path, page: Path, scheme: str, width: int, *flags: str, height: int = 900) -> str:
    assert BROWSER is not None
    given = (
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--window-size={width},{height}",
        *flags,
        page.as_uri(),
    )
    return subprocess.run([BROWSER, *given], capture_output=True, text=True, timeout=240, check=True).stdout


def looked_at(folder: Path, content: str, scheme: str, width: int) -> dict[str, Any]:
    # The page's own policy forbids scripts; the copy that is inspected goes without it.
    inspected = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", content)
    inspected = html.escape(inspected.replace("</body>", f"<script>{LOOK}</script></body>"))
    path = folder / "page.html"
    # In a frame: the window itself can't be as narrow as a phone.
    path.write_text(
        '<!doctype html><html style="color-scheme: light dark"><meta charset="utf-8"><body style="margin: 0">'
        f'<iframe style="border: 0; width: {width}px; height: 3000px" srcdoc="{inspected}"></iframe></body></html>',
        encoding="utf-8",
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', chromium(folder, path, scheme, 1200, "--dump-dom"), re.DOTALL)
    assert found is not None
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_everything_can_be_read(name: str, scheme: str, width: int, tmp_path: Path) -> None:
    found = looked_at(tmp_path, PAGES[name](), scheme, width)
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    assert found["figures"] == {"comparison": 4, "methods": 6, "smollm2": 6}.get(name, 3)
    assert found["texts"] > 100
    assert found["fetched"] == []
    for flaw in ("outside", "cut", "overlapping", "faint", "small"):
        assert found[flaw] == [], flaw
    assert {"report": "INCONCLUSIVE", "full": "INCONCLUSIVE", "awkward": "FAIL"}.get(name, "best") in found["verdict"]


def test_the_check_sees_flaws(tmp_path: Path) -> None:
    """The negative control: labels too long, faint, overlapping, a page too wide."""
    broken = (
        rendered().replace("--soft: #57606a", "--soft: #c0c0c0").replace("main { max-width", "main { width: 1500px; x")
    )
    broken = re.sub(r"(<text[^>]*>)0(</text>)", r"\1zero, and much more than fits into this small place\2", broken)
    found = looked_at(tmp_path, broken, "light", 1100)
    assert found["overflow"] > 0
    assert found["faint"]
    assert found["overlapping"]


def test_no_script_runs_in_the_page_itself(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    content = rendered().replace("</body>", "<script>document.title = 'ran'</script></body>")
    path.write_text(content, encoding="utf-8")
    assert "<title>ran" not in chromium(tmp_path, path, "light", 800, "--dump-dom")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_screenshot(scheme: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(rendered(), encoding="utf-8")
    chromium(tmp_path, path, scheme, 360, f"--screenshot={picture}", height=3000)
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (360, 3000)
    assert len(content) > 50_000
