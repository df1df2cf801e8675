"""Stock models and checkpoints with an attachment, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attention.battery import ROWS, attach
from tests.modeling.emitted import save_stock


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny stock model of a kind."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_stock(kind, tmp_path_factory.mktemp(kind) / "stock")
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def emitted(tmp_path_factory: pytest.TempPathFactory, stock_folder: Callable[[str], Path]) -> Callable[..., Path]:
    """The folder of a stock model that was given an attachment, with its row's settings unless others are named."""
    made: dict[tuple[str, str, str], Path] = {}

    def folder(name: str, kind: str, settings: str | None = None) -> Path:
        chosen = ROWS[name].settings if settings is None else settings
        if (name, kind, chosen) not in made:
            out = tmp_path_factory.mktemp(f"{name}-{kind}") / "out"
            made[name, kind, chosen] = attach(stock_folder(kind), name, chosen, out)
        return made[name, kind, chosen]

    return folder
