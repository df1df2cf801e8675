"""Figures as PNG."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from ctxforge.errors import ResourceError, UsageError
from ctxforge.verification.html import figures, png_bytes, save_png
from ctxforge.verification.html.png import FAMILIES, installed_family
from tests.verification.html_samples import PLAN, stored_report


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
