"""Jobs from and to a Hub: a source is downloaded once, pinned to one commit, and results are published once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctxforge import pipeline
from ctxforge.recipe import ConversionRecipe, MethodChoice, OutputOptions
from tests.batch.files import trees, write
from tests.hub_server import HubServer
from tests.publish.conftest import run_ctxforge
from tests.publish.sources import contents, ones

BATCH = """
version: 1
output: out
defaults: {source: org/source, method: yarn, to: 4x}
jobs:
  - {name: kept}
  - {name: kept-too, method: pi}
  - {name: sent, push: "extended-{length}"}
  - {name: both, method: ntk, out: both, push: {repo: both-of-it, private: true}}
"""


def whole_downloads(hub: HubServer) -> list[str]:
    return [
        one.path
        for one in hub.requests
        if one.method == "GET" and one.path.endswith(".safetensors") and one.range is None
    ]


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    with HubServer(tmp_path / "hub") as server:
        yield server


def test_downloads_are_shared_and_results_published_once(tmp_path: Path, hub: HubServer) -> None:
    local = ones(tmp_path / "local")
    hub.add_repo("org/source", contents(local))
    token = hub.account("me")
    home = tmp_path / "home"
    write(home / "b.yaml", BATCH)
    planned = run_ctxforge(hub, token, home, "run", "b.yaml", "--dry-run", "--json", "-q")
    assert planned.returncode == 0, planned.stderr
    bytes_ = {job["job"]: job["bytes"] for job in json.loads(planned.stdout)["jobs"]}
    assert bytes_["sent"]["to_upload"] > 0
    assert bytes_["sent"]["to_write"] == 0
    assert bytes_["kept"]["to_upload"] == 0
    assert whole_downloads(hub) == []

    done = run_ctxforge(hub, token, home, "run", "b.yaml", "--json", "-q", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {job["job"]: job for job in json.loads(done.stdout)["jobs"]}
    downloads = [path.rpartition("/")[2] for path in whole_downloads(hub)]
    assert sorted(set(downloads)) == sorted(downloads)
    assert found["sent"]["out"] is None
    assert sorted(trees(home / "out")) == ["both", "kept", "kept-too"]
    sent = hub.repo(
        "me/extended-16k" if "me/extended-16k" in found["sent"]["url"] else found["sent"]["stages"]["push"]["repo"]
    )
    alone = pipeline.extend(
        ConversionRecipe(source=str(local), method=MethodChoice(name="yarn"), to="4x"),
        OutputOptions(out=tmp_path / "alone"),
    ).out
    config = "config.json"
    assert sent.read(config, "main") == (alone / config).read_bytes()
    assert (home / "out" / "kept" / config).read_bytes() == (alone / config).read_bytes()
    assert len(sent.commits()) == 2  # the repository's first, and one
    assert hub.repo("me/both-of-it").read(config, "main") == (home / "out" / "both" / config).read_bytes()

    hub.reset()
    again = run_ctxforge(hub, token, home, "run", "b.yaml", "--json", "-q", "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["counts"] == {"skipped": 4}


def test_no_token_is_told_before_anything_is_done(tmp_path: Path, hub: HubServer) -> None:
    hub.add_repo("org/source", contents(ones(tmp_path / "local")))
    home = tmp_path / "home"
    write(home / "b.yaml", BATCH)
    for token in (None, hub.account("reader", role="read")):
        done = run_ctxforge(hub, token, home, "run", "b.yaml", "--json", "-q")
        assert done.returncode == 4, done.stdout
        assert json.loads(done.stdout)["error"]["cause"].startswith("b.yaml:7:5: job sent: ")
        assert not (home / "out").exists()
        assert token is None or token not in done.stdout + done.stderr
