"""A Hub on loopback, and ctxforge pointed at it: in this process, or in children with an empty cache."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctxforge.publish.connection import Connection, connect
from ctxforge.publish.retry import Backoff
from tests.hub_server import HubServer

Connect = Callable[..., Connection]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def said() -> list[str]:
    """What publishing told."""
    return []


@pytest.fixture
def connected(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]) -> Connect:
    """`connected("me", role="read")`: a connection of an account, in this process, that waits for nothing."""
    from huggingface_hub import HfApi, constants, file_download
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hasty = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", hasty)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def make(name: str | None, **account: Any) -> Connection:
        token = hub.account(name, **account) if name else False
        return connect(said.append, api=HfApi(endpoint=hub.url, token=token), backoff=Backoff(sleep=lambda _: None))

    return make


def run_ctxforge(hub: HubServer, token: str | None, home: Path, *words: str, **more: str) -> Any:
    """The command line in a process of its own, with nothing in any cache but what `home` has."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **hub.environment(token, home),
        "CTXFORGE_CACHE": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-m", "ctxforge", *words],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
