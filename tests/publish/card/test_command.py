"""`ctxforge card`: the card that a push would publish, shown before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctxforge.sources import bundled_model
from tests.publish.card.builders import own, stored

CARD = b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n"


@pytest.fixture
def folder(cli: Callable[..., Any], tmp_path: Path) -> Path:
    """A conversion of a folder with a card."""
    source = tmp_path / "source"
    source.mkdir()
    for path in bundled_model().iterdir():
        if path.name != "README.md":
            shutil.copy(path, source)
    (source / "README.md").write_bytes(CARD)
    assert cli("extend", source, "--method", "yarn", "--to", "4x", "--out", tmp_path / "my out").code == 0
    return tmp_path / "my out"


def test_on_stdout(folder: Path, cli: Callable[..., Any]) -> None:
    ran = cli("card", folder)
    assert ran.code == 0
    assert ran.out.startswith("---\nlibrary_name: transformers\nlicense: mit\n")
    assert ran.out.endswith("# Mine\r\n")
    assert "vllm serve OWNER/my-out --max-model-len 2048" in ran.out
    assert str(folder.parent) not in ran.out
    assert "**Nothing was verified**" in ran.out
    assert "ctxforge-lambda.svg" in ran.err
    document = cli("card", folder, "--repo", "me/x", "--json").document
    assert (document["command"], document["status"], document["figures"]) == ("card", "ok", ["ctxforge-lambda.svg"])
    assert "# x\n" in document["card"]


def test_written_with_figures_and_a_report(folder: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    (folder / "verification.json").write_text(json.dumps(stored().to_dict()))
    out = tmp_path / "card"
    assert cli("card", folder, "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "ctxforge-lambda.svg", "ctxforge-perplexity.svg", "ctxforge-retrieval.svg")
    }
    written = (out / "README.md").read_bytes()
    assert written.endswith(b"\n# Mine\r\n")
    assert "38/40" in own(written.decode())
    # Rendered again from itself it is the same, and it may be written over.
    assert cli("card", folder, "--source-card", out / "README.md", "--out", out).code == 0
    assert (out / "README.md").read_bytes() == written
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"command": "verify", "report": stored().to_dict()}))
    (folder / "verification.json").unlink()
    assert cli("card", folder, "--report", report, "--out", out).code == 0
    assert (out / "README.md").read_bytes() == written


def test_a_readme_of_somebody_is_not_written_over(folder: Path, cli: Callable[..., Any]) -> None:
    ran = cli("card", folder, "--out", folder)
    assert ran.code == 2
    assert "somebody's own" in ran.err
    assert (folder / "README.md").read_bytes() == CARD


def test_a_readme_that_will_be_published_as_it_is_is_told(folder: Path, cli: Callable[..., Any]) -> None:
    assert "did not come with the source" not in cli("card", folder).err
    (folder / "README.md").write_text("# My own")
    assert "did not come with the source: push publishes that as it is" in cli("card", folder).err


def test_bad_input(folder: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    for arguments, cause in (
        (("bundled",), "has no ctxforge.json"),
        ((folder, "--repo", "a/b/c"), "not a repository id"),
        ((folder, "--source-card", tmp_path / "none.md"), "can't be read"),
        ((folder, "--report", folder / "config.json"), "no verification report"),
        ((folder, "--report", folder / "model.safetensors"), "not a JSON report"),
        ((tmp_path / "none",), "none"),
    ):
        ran = cli("card", *arguments)
        assert ran.code == 2, arguments
        assert cause in ran.err
        assert "Traceback" not in ran.err
        assert ran.err.count("\n") == 2
