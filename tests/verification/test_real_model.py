"""SmolLM2-135M on the first 16 384 tokens of *Emma*: known figures, measured elsewhere with stock transformers.

Ten minutes on two cores: `pytest -m real_model tests/verification`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ctxforge.verification import VerifySettings, verify
from ctxforge.verification.load import load_tokenizer
from tests import assets

pytestmark = pytest.mark.real_model

UNMODIFIED = (28.89, 21.59, 22.03, 31.80, 31.79, 40.31, 176.88, 628.74)
YARN = (29.64, 22.15, 22.40, 32.83, 32.23, 23.27, 22.94, 30.64)


def yarn_folder(source: Path, target: Path) -> Path:
    """The source with a YaRN config written by hand, so that this test stands apart from the converter."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config.pop("rope_scaling", None)
    config["rope_parameters"] = {
        "rope_type": "yarn",
        "factor": 2.0,
        "rope_theta": 100000.0,
        "original_max_position_embeddings": 8192,
    }
    config["max_position_embeddings"] = 16384
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_emma_tokenises_as_recorded() -> None:
    text = assets.emma_text()
    assert len(text.encode()) == 883_027
    tokenizer = load_tokenizer(assets.smollm2_folder(), VerifySettings())
    assert len(tokenizer(text, verbose=False)["input_ids"]) == 221_849


def test_perplexity_of_emma(tmp_path: Path) -> None:
    source = assets.smollm2_folder()
    report = verify(
        yarn_folder(source, tmp_path / "yarn"),
        source_dir=source,
        text=assets.emma_text(),
        trained_length=8192,
        target_length=16384,
        settings=VerifySettings(retrieval=False, device="cpu"),
    )
    assert report.source is not None
    assert report.source.lengths[-1].ppl == pytest.approx(52.99, rel=0.005)
    assert report.result.lengths[-1].ppl == pytest.approx(26.65, rel=0.005)
    assert [b.ppl for b in report.source.buckets] == pytest.approx(UNMODIFIED, rel=0.005)
    assert [b.ppl for b in report.result.buckets] == pytest.approx(YARN, rel=0.005)
    assert report.short_context is not None
    assert 0 < report.short_context.mean < 0.1
