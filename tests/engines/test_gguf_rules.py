"""The emulation of llama.cpp's converter against the GGUF that it really writes, for a tiny model of each class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ctxforge
from ctxforge.engines.context import make_context
from ctxforge.engines.readers.llamacpp import read
from ctxforge.engines.run.convert import convert_to_gguf
from ctxforge.engines.run.worker import WorkerError
from tests.engines.environments import use
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.engine
METHODS = ("ntk", "yarn", "llama3")


@pytest.mark.parametrize(
    "kind", ["mistral", "mixtral", "qwen2", "qwen3", "gemma2", "stablelm", "gpt_neox", "phi3", "olmo2", "gpt_oss"]
)
@pytest.mark.parametrize("method", METHODS)
def test_rope_keys_of_a_converted_file(kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "llama.cpp")
    source, folder, file = save_tiny(kind, tmp_path / "tiny"), tmp_path / "long", tmp_path / "long.gguf"
    ctxforge.extend(source, method=method, to="4x", out=folder)
    reading = read(make_context(json.loads((folder / "config.json").read_text())))
    if reading.refusal is not None:
        with pytest.raises(WorkerError, match=reading.refusal.split(":")[0]):
            convert_to_gguf(folder, file)
        return
    assert convert_to_gguf(folder, file)
    keys, tensors = _rope(file)
    table = reading.tables[None]
    # The runtime takes theta 10000 where the file names none (src/llama-hparams.h).
    assert keys.get("freq_base", 10000.0) == pytest.approx(table.base, rel=1e-6)
    assert keys.get("scaling.type", "no scaling") == (table.scaling if table.scaling == "yarn" else "no scaling")
    assert keys.get("scaling.attn_factor", 1.0) == pytest.approx(table.temperature if kind == "phi3" else 1.0, abs=1e-6)
    expected = {"llama3": {"rope_freqs.weight"}, "longrope": {"rope_factors_long.weight", "rope_factors_short.weight"}}
    assert tensors == expected.get(table.scaling, set())


def _rope(file: Path) -> tuple[dict[str, Any], set[str]]:
    """The file's rope keys without the architecture's prefix, and its rope tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    found = {key.partition(".rope.")[2]: field.contents() for key, field in reader.fields.items() if ".rope." in key}
    return found, {tensor.name for tensor in reader.tensors if "rope" in tensor.name}
