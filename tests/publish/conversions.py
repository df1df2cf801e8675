"""A source on the test Hub, planned conversions of it, and folders that were converted from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctxforge import pipeline
from ctxforge.api import _recipe
from ctxforge.pipeline import Conversion
from ctxforge.publish.connection import Connection
from ctxforge.recipe import OutputOptions
from tests.hub_server import HubServer
from tests.publish.conftest import Connect
from tests.publish.sources import contents, ones

SOURCE = "org/source"


class Bench:
    """`bench.conversion("pi", 1.2)` plans on the source's headers, `bench.folder()` converts into a folder."""

    def __init__(self, hub: HubServer, connection: Connection, base: Path, **repo: Any) -> None:
        self.hub, self.connection, self.base = hub, connection, base
        self.local = ones(base / "source")
        self.sha = hub.add_repo(SOURCE, contents(self.local), **repo)

    def recipe(self, method: str = "yarn", temperature: float | None = None, source: str = SOURCE) -> Any:
        return _recipe(source, None, method, None, "4x", None, temperature, None, None, "widest")

    def conversion(self, method: str = "yarn", temperature: float | None = None) -> Conversion:
        return pipeline.plan_to_publish(self.recipe(method, temperature))

    def folder(self, name: str = "converted", source: str = SOURCE, temperature: float | None = None) -> Path:
        method = "yarn" if temperature is None else "pi"
        recipe = self.recipe(method, temperature, source)
        return pipeline.extend(recipe, OutputOptions(out=self.base / name)).out

    def wrote(self) -> list[str]:
        """Requests that could change something."""
        harmless = ("/api/validate-yaml", "/paths-info/")
        return [
            f"{one.method} {one.path}"
            for one in self.hub.requests
            if one.method not in ("GET", "HEAD") and not any(part in one.path for part in harmless)
        ]


def make_bench(hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, base: Path, **repo: Any) -> Bench:
    """The source, and an account "me" in this process and in its environment."""
    connection = connected("me")
    monkeypatch.setenv("HF_TOKEN", str(connection.api.token))
    return Bench(hub, connection, base, **repo)
