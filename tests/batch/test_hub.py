"""Jobs from and to a Hub: a source is downloaded once, pinned to one commit, and results are published once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctxforge import pipeline
from ctxforge.batch import BatchOptions, prepare, run
from ctxforge.errors import HubError
from ctxforge.recipe import ConversionRecipe, MethodChoice, OutputOptions
from tests.batch.files import Here, ran, statuses, trees, write
from tests.hub_server import HubServer
from tests.publish.conftest import Connect
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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer, connected: Connect) -> Path:
    hub.add_repo("org/source", contents(ones(tmp_path / "local")))
    monkeypatch.setenv("HF_TOKEN", str(connected("me").api.token))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml", BATCH)
    return tmp_path


def test_downloads_are_shared_and_results_published_once(folder: Path, hub: HubServer) -> None:
    prepared = prepare(folder / "b.yaml", BatchOptions())
    found = {one.name: one for one in prepared.jobs}
    assert (found["sent"].bytes_to_write, found["kept"].bytes_to_upload) == (0, 0)
    assert found["sent"].bytes_to_upload > 0
    assert whole_downloads(hub) == []

    result = run(prepared, BatchOptions(), executor=Here())
    assert set(statuses(result).values()) == {"done"}, [one.failure for one in result.results]
    downloads = [path.rpartition("/")[2] for path in whole_downloads(hub)]
    assert sorted(set(downloads)) == sorted(downloads)
    outs = {one.name: one.out for one in result.results}
    assert outs["sent"] is None
    assert sorted(trees(folder / "out")) == ["both", "kept", "kept-too"]
    recipe = ConversionRecipe(source=str(folder / "local"), method=MethodChoice(name="yarn"), to="4x")
    alone = pipeline.extend(recipe, OutputOptions(out=folder / "alone")).out
    config = (alone / "config.json").read_bytes()
    assert (folder / "out" / "kept" / "config.json").read_bytes() == config
    repo = next(one.stages["push"]["repo"] for one in result.results if one.name == "sent")
    assert hub.repo(repo).read("config.json", "main") == config
    both = hub.repo("me/both-of-it")
    assert both.read("config.json", "main") == (folder / "out" / "both" / "config.json").read_bytes()

    again = ran(folder / "b.yaml", Here(), resume=True)
    assert set(statuses(again).values()) == {"skipped"}
    assert [one.exit_code for one in again.results] == [0, 0, 0, 0]


def test_a_branch_that_moves_meanwhile_does_not_mix_two_sources(folder: Path, hub: HubServer) -> None:
    prepared = prepare(folder / "b.yaml", BatchOptions(only=("kept*",)))
    first = prepared.jobs[0].revision
    hub.push("org/source", {"generation_config.json": b'{"bos_token_id": 2}'})
    assert hub.repo("org/source").head() != first
    result = run(prepared, BatchOptions(), executor=Here())
    recorded = [json.loads((Path(one.out or "") / "ctxforge.json").read_text()) for one in result.results]
    assert {document["source"]["revision"] for document in recorded} == {first}


@pytest.mark.parametrize("role", ["read", "expired", None])
def test_no_right_to_write_is_told_before_anything_is_done(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub: HubServer,
    role: str | None,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if role is not None:
        monkeypatch.setenv("HF_TOKEN", hub.account("reader", role=role))
    with pytest.raises(HubError) as caught:
        prepare(folder / "b.yaml", BatchOptions())
    assert ": job " in caught.value.cause
    assert not (folder / "out").exists()
