"""`ctxforge gguf`: the divisors and the temperature of a config, in a GGUF whose other bytes stay what they were."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from ctxforge.errors import CheckpointError, UnsupportedError, UsageError
from ctxforge.gguf_rope import patch_gguf
from tests.conftest import Ran
from tests.gguf_rope.builders import build_folder, build_gguf, fields, longrope, tensors

DIVISORS = [1.0, 1.5, 2.0, 2.25, 3.0, 4.0, 8.0, 1e30]


def test_divisors_and_temperature_are_written_and_nothing_else_changes(tmp_path: Path) -> None:
    source = build_gguf(tmp_path / "a.gguf")
    before = source.read_bytes()
    like = build_folder(tmp_path / "like", longrope(DIVISORS, attention_factor=1.25), rope_theta=5e5)
    out = tmp_path / "b.gguf"
    done = patch_gguf(source, like, out)
    assert done.removed == (
        "llama.rope.scaling.type",
        "llama.rope.scaling.factor",
        "llama.rope.scaling.original_context_length",
    )
    new, old = tensors(out), tensors(source)
    assert np.frombuffer(new.pop("rope_freqs.weight"), np.float32).tolist() == [float(np.float32(d)) for d in DIVISORS]
    assert new == old
    changed = {
        "llama.context_length": 256,
        "llama.rope.freq_base": 5e5,
        "llama.rope.scaling.attn_factor": 1.25,
    }
    kept = {key: value for key, value in fields(source).items() if key not in done.removed}
    assert fields(out) == kept | changed
    assert source.read_bytes() == before
    # llama.cpp wants tensors without a gap between them, each aligned.
    at = 0
    for tensor in GGUFReader(out).tensors:
        assert tensor.data_offset == GGUFReader(out).data_offset + at
        at += tensor.n_bytes + -tensor.n_bytes % 32
    assert out.stat().st_size == GGUFReader(out).data_offset + at


def test_a_tensor_that_is_there_is_replaced_in_place(tmp_path: Path) -> None:
    source = build_gguf(tmp_path / "a.gguf", scaling=False, freqs=[9.0] * 8)
    like = build_folder(tmp_path / "like", longrope(DIVISORS))
    patch_gguf(source, like, tmp_path / "b.gguf")
    new, old = tensors(tmp_path / "b.gguf"), tensors(source)
    assert list(new) == list(old)
    assert new.pop("rope_freqs.weight") == struct.pack("<8f", *DIVISORS)
    old.pop("rope_freqs.weight")
    assert new == old
    assert "llama.rope.scaling.attn_factor" not in fields(tmp_path / "b.gguf")


def test_a_plain_config_needs_no_tensor(tmp_path: Path) -> None:
    source = build_gguf(tmp_path / "a.gguf")
    patch_gguf(source, build_folder(tmp_path / "like", None, rope_theta=12345.0), tmp_path / "b.gguf")
    assert tensors(tmp_path / "b.gguf") == tensors(source)
    assert not [key for key in fields(tmp_path / "b.gguf") if "scaling" in key]
    assert fields(tmp_path / "b.gguf")["llama.rope.freq_base"] == 12345.0


def test_yarn_divisors_are_those_of_the_paper(tmp_path: Path) -> None:
    """YaRN, d = 16, base 10000, L0 = 64, s = 4 (2309.00071, eq. 23 and the reference code's index ramp, by hand).

    low = floor(16 ln(64/(32 2 pi)) / (2 ln 10000)) < 0, cut to 0; high = ceil(16 ln(64/(2 pi)) / (2 ln 10000)) = 3.
    """
    source = build_gguf(tmp_path / "a.gguf")
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    patch_gguf(source, build_folder(tmp_path / "like", rope), tmp_path / "b.gguf")
    kept = [1 - min(i / 3, 1.0) for i in range(8)]
    wanted = [1 / ((1 - k) / 4 + k) for k in kept]
    found = np.frombuffer(tensors(tmp_path / "b.gguf")["rope_freqs.weight"], np.float32)
    assert found == pytest.approx(wanted, rel=1e-6)
    temperature = fields(tmp_path / "b.gguf")["llama.rope.scaling.attn_factor"]
    assert temperature == pytest.approx(0.1 * math.log(4) + 1, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "like", "error", "says"),
    [
        ({"arch": "qwen2"}, {}, UnsupportedError, "qwen2"),
        ({}, {"num_hidden_layers": 3}, CheckpointError, "block_count is 2, the config's 3"),
        ({}, {"num_attention_heads": 4}, CheckpointError, "head_count"),
        ({}, {"head_dim": 32}, CheckpointError, "dimension_count"),
        ({"freqs": [1.0] * 4}, {}, CheckpointError, "shape"),
        ({}, {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, UnsupportedError, "length"),
    ],
)
def test_what_cannot_be_right_is_refused_and_nothing_is_written(
    tmp_path: Path, build: dict[str, Any], like: dict[str, Any], error: type[Exception], says: str
) -> None:
    source = build_gguf(tmp_path / "a.gguf", **build)
    changes = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, **like}
    folder = build_folder(tmp_path / "like", **{"rope": changes.pop("rope_scaling"), **changes})
    with pytest.raises(error, match=says):
        patch_gguf(source, folder, tmp_path / "b.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "like"]


def test_an_existing_output_stays_unless_asked(tmp_path: Path) -> None:
    source = build_gguf(tmp_path / "a.gguf")
    like = build_folder(tmp_path / "like", longrope(DIVISORS))
    out = tmp_path / "b.gguf"
    out.write_text("mine")
    with pytest.raises(UsageError):
        patch_gguf(source, like, out)
    assert out.read_text() == "mine"

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch_gguf(source, like, out, overwrite=True, progress=stop)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "like"]
    patch_gguf(source, like, out, overwrite=True)
    assert "rope_freqs.weight" in tensors(out)


def test_in_place(tmp_path: Path) -> None:
    source = build_gguf(tmp_path / "a.gguf")
    old = tensors(source)
    patch_gguf(source, build_folder(tmp_path / "like", longrope(DIVISORS)), source, overwrite=True)
    assert {**tensors(source), **old} == tensors(source)
    assert "rope_freqs.weight" in tensors(source)


def test_command(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    source = build_gguf(tmp_path / "a.gguf")
    like = build_folder(tmp_path / "like", longrope(DIVISORS, attention_factor=1.25))
    ran = cli("gguf", source, "--like", like, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["out"] == str(tmp_path / "a.rope.gguf")
    assert ran.document["divisors"] == DIVISORS
    assert ran.document["temperature"] == 1.25
    again = cli("gguf", source, "--like", like)
    assert again.code == 2
    assert "exists already" in again.err
    source.write_bytes(b"")
    for path in (source, tmp_path / "none.gguf"):
        ran = cli("gguf", path, "--like", like, "--out", tmp_path / "c.gguf")
        assert ran.code == 2
        assert len(ran.err.strip().splitlines()) == 2
