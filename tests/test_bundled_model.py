"""What the bundled model promises: it reads English, retrieves inside its length, and fails beyond it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ctxforge import demo
from ctxforge.sources import bundled_model, bundled_text
from ctxforge.verification.load import load_tokenizer
from ctxforge.verification.settings import VerifySettings


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> demo.Demonstration:
    return demo.run(tmp_path_factory.mktemp("demo"))


def nll(found: Any, length: int) -> float:
    return next(score.nll for score in found.lengths if score.length == length)


def retrieved(found: Any, length: int) -> float:
    cells = [cell for cell in found.retrieval if cell.length == length]
    return sum(cell.exact for cell in cells) / sum(cell.count for cell in cells)


def test_it_is_small_and_its_tokenizer_is_bytes() -> None:
    assert (bundled_model() / "model.safetensors").stat().st_size <= 8_000_000
    tokenizer = load_tokenizer(Path(bundled_model()), VerifySettings())
    text = bundled_text()[:2000] + " é € 🙂"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_inside_its_length_it_reads_and_retrieves(shown: demo.Demonstration) -> None:
    found = shown.measures["none"]
    assert nll(found, 512) / math.log(2) <= 2.0
    assert retrieved(found, 512) >= 0.9


def test_beyond_its_length_it_fails_and_yarn_does_not(shown: demo.Demonstration) -> None:
    plain, yarn, pi = (shown.measures[name] for name in ("none", "yarn", "pi"))
    assert math.exp(nll(plain, 2048) - nll(plain, 512)) >= 1.5
    assert retrieved(plain, 2048) == 0
    assert nll(yarn, 2048) < nll(plain, 512) + 0.1
    assert retrieved(yarn, 2048) >= 0.7
    assert nll(pi, 2048) > nll(yarn, 2048) + 1
    # NTK's mean looks healthy; its end does not, and retrieval there says so.
    ntk = shown.measures["ntk"]
    assert ntk.buckets[-1].nll > yarn.buckets[-1].nll + 0.3
    assert retrieved(ntk, 2048) < 0.2
