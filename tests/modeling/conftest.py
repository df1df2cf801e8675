"""Stock models and conversions, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.modeling.emitted import Case, convert, save_stock


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny stock model of a kind."""
    made: dict[str, Path] = {}

    def source(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_stock(kind, tmp_path_factory.mktemp(kind) / "stock")
        return made[kind]

    return source


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, sources: Callable[[str], Path]) -> Callable[[Case], Path]:
    """The folder of a conversion."""
    made: dict[str, Path] = {}

    def folder(case: Case) -> Path:
        if str(case) not in made:
            made[str(case)] = convert(case, sources(case.kind), tmp_path_factory.mktemp("converted") / "out")
        return made[str(case)]

    return folder
