"""The batch files that ship as templates are right, and so is the example of the documentation."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ctxforge.sources import bundled_model
from tests.conftest import Ran

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "batch.md").read_text(), re.DOTALL)


def test_the_template_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "templates" / "recipes" / "batch.yaml"
    planned = cli("run", file, "--dry-run", "--json", "-q")
    assert [job["job"] for job in planned.document["jobs"]] == [
        "yarn-sharp",
        "yarn-judged",
        "bundled-pi-4x",
        "bundled-yarn+resonance-4x",
        "bundled-yarn+resonance-8x",
        "bundled-none-self-extend-4x",
        "bundled-none-self-extend-8x",
    ]
    done = cli("run", file, "--json", "-q", "--only", "yarn-sharp", "--only", "bundled-*")
    assert done.code == 0
    assert done.document["counts"] == {"done": 6}
    assert sorted(path.name for path in (tmp_path / "converted").iterdir() if path.is_dir()) == [
        "bundled-none-self-extend-2k",
        "bundled-none-self-extend-4k",
        "bundled-pi-2k",
        "bundled-yarn+resonance-2k",
        "bundled-yarn+resonance-4k",
        "yarn-sharp",
    ]


@pytest.mark.parametrize("text", EXAMPLES, ids=[text.splitlines()[0] for text in EXAMPLES])
def test_examples_of_the_documentation_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran], text: str
) -> None:
    """Their sources are the bundled model here, which says 4096 tokens of itself, and nothing is published."""
    monkeypatch.chdir(tmp_path)
    for name in ("llama-7b", "mistral-7b"):
        shutil.copytree(bundled_model(), tmp_path / "org" / name)
        config = tmp_path / "org" / name / "config.json"
        config.write_text(config.read_text().replace(": 512,", ": 4096,"))
    (tmp_path / "common.yaml").write_text("version: 1\ndefaults: {source: bundled, method: yarn, to: 4x}\n")
    for name in ("book.txt", "gates.toml"):
        (tmp_path / name).write_text("[gates]\nshort_nll = 0.02\n")
    (tmp_path / "b.yaml").write_text(re.sub(r"@main|\n *push: .*", "", text))
    done = cli("run", "b.yaml", "--dry-run", "--json", "-q")
    assert done.code == 0, done.err
    assert done.document["jobs"]
