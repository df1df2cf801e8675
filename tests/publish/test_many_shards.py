"""More shards than the server copies in one request: on the Hub 500, here 3 (with 520 it was tried by hand)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctxforge import pipeline
from ctxforge.publish import PushOptions, publish
from tests.hub_server import HubServer
from tests.publish.conftest import Connect
from tests.publish.conversions import Bench
from tests.publish.sources import contents, ones


def test_more_shards_than_one_request_copies(
    hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import _commit_api

    monkeypatch.setattr(_commit_api, "DUPLICATE_LFS_BATCH_SIZE", 3)
    monkeypatch.setattr(_commit_api, "FETCH_LFS_BATCH_SIZE", 3)
    connection = connected("me")
    monkeypatch.setenv("HF_TOKEN", str(connection.api.token))
    bench = Bench(hub, connection, tmp_path)
    hub.add_repo("org/many", contents(ones(tmp_path / "many", shards=8)))
    conversion = pipeline.plan_to_publish(bench.recipe(source="org/many"))
    hub.reset()
    done = publish(conversion, PushOptions(repo="many"), connection=connection)
    assert [step.route for step in done.plan.steps].count("copied") == 8
    assert sum(one.path.endswith("/lfs-files/duplicate") for one in hub.requests) == 3
    assert len(hub.repo("me/many").commits()) == 2
    assert sum(name.endswith(".safetensors") for name in hub.repo("me/many").files()) == 8
