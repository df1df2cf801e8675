"""A server for each test, and huggingface_hub pointed at it within this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", page_size=3) as server:
        yield server


@pytest.fixture
def api(hub: HubServer, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """HfApi of an account: `api("me")`, `api(None)` for anonymous. Xet stays off and retries don't wait."""
    from huggingface_hub import HfApi

    def make(name: str | None, **account: Any) -> Any:
        return HfApi(token=hub.account(name, **account) if name else False)

    with hub.inside(None, tmp_path / "home"):
        yield make
