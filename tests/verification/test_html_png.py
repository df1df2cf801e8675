"""Figures as PNG."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import pytest

from ctxforge.errors import ResourceError, UsageError
from ctxforge.verification.html import comparison_figures, figures, png_bytes, save_figures, save_png
from ctxforge.verification.html.png import FAMILIES, installed_family
from tests.verification.html_samples import PLAN, comparison_rows, stored_report


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UsageError) as raised:
        save_png("<svg/>", tmp_path / "x.png")
    assert "ctxforge-llm[report]" in raised.value.remedy


def test_machine_without_fonts() -> None:
    with pytest.raises(ResourceError, match="no font"):
        installed_family(lambda **_: b"the same picture, whatever the text", FAMILIES)


def test_figures_become_pictures(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="the extra `report` is not installed")
    for name, svg in figures(stored_report(), plan=PLAN).items():
        path = tmp_path / "new" / f"{name}.png"
        save_png(svg, path, 1200)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", content[16:24])
        assert width == 1200
        assert 400 < height < 1200
        # The labels are there, in the light colours whatever the machine's setting.
        assert png_bytes(svg.replace("<text", "<desc").replace("</text", "</desc"), 1200) != content
    with pytest.raises(ResourceError, match="can't be written"):
        save_png(svg, tmp_path / "new" / "rotation.png" / "below-a-file.png")
    with pytest.raises(UsageError):
        save_png(svg, tmp_path / "wide.png", 100_000)


def pixels(content: bytes) -> tuple[int, int, bytes]:
    """Width, height and the scan lines of a PNG, read without an image library: filtered bytes, which is enough to
    see whether there is more than one colour."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    at, packed = 8, b""
    while at < len(content):
        (size,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        packed += content[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    return width, height, zlib.decompress(packed)


def blank(content: bytes) -> bool:
    """Whether all scan lines but the first are the same: on plain paper every filter gives the same line."""
    _, height, lines = pixels(content)
    row = len(lines) // height
    return len({lines[i * row : (i + 1) * row] for i in range(1, height)}) <= 2


def test_folder_of_figures(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="the extra `report` is not installed")
    compared = comparison_figures(comparison_rows(), trained_length=512, target_length=2048)
    for drawn in (figures(stored_report(), plan=PLAN), compared, figures(stored_report(), width=360)):
        written = save_figures(tmp_path / "a" / "b", drawn)
        assert [path.name for path in written] == [f"{name}.{kind}" for name in drawn for kind in ("svg", "png")]
        for name, svg in drawn.items():
            assert (tmp_path / "a" / "b" / f"{name}.svg").read_text(encoding="utf-8") == svg
            content = (tmp_path / "a" / "b" / f"{name}.png").read_bytes()
            width, height, lines = pixels(content)
            assert f' width="{width // 2}" height="{height // 2}" style' in svg.partition(">")[0]
            assert len(set(lines)) > 50
            assert not blank(content)
            bare = svg[: svg.index("<rect")] + '<rect width="9999" height="9999" style="fill:#fff"/></svg>'
            assert blank(png_bytes(bare, width))


def test_folder_of_figures_without_rasteriser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    written = save_figures(tmp_path, figures(stored_report(), plan=PLAN))
    assert [path.name for path in written] == ["perplexity.svg", "retrieval.svg", "rotation.svg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't be written"):
        save_figures(tmp_path / "file", figures(stored_report()))
