"""Edited tensors equal torch's arithmetic bit for bit; everything around them stays byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ctxforge.checkpoint import Edits, ScaleRows, read_checkpoint, read_tensor, read_tensor_bytes, write_checkpoint
from ctxforge.checkpoint.patch import decode, encode, scale_block
from ctxforge.checkpoint.types import Checkpoint
from ctxforge.errors import CheckpointError, CtxforgeError, UnsupportedError, UsageError
from tests.checkpoint.builders import CONFIG, build, shard_bytes, spec

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def every_16_bit_value(dtype: str) -> torch.Tensor:
    return torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(TORCH[dtype])


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("factor", [0.7071067811865476, 1.1386294361119891, 1.0, -0.25, 1e-3])
def test_all_16_bit_values_scale_as_in_torch(dtype: str, factor: float) -> None:
    values = every_16_bit_value(dtype)
    expected = (values.float() * factor).to(values.dtype)
    keep = torch.isfinite(expected) | ~torch.isfinite(values)
    values, expected = values[keep], expected[keep]
    out = torch.frombuffer(bytearray(scale_block(as_bytes(values), dtype, factor, 0.0, "x")), dtype=values.dtype)
    number = ~torch.isnan(values)
    assert torch.equal(out[number].view(torch.int16), expected[number].view(torch.int16))
    assert torch.isnan(out[~number]).all()


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_values_scale_as_in_torch(dtype: str) -> None:
    values = torch.randn(10_000, dtype=TORCH[dtype], generator=torch.Generator().manual_seed(0))
    expected = (values.double() * 1.1386294361119891).to(values.dtype)
    assert scale_block(as_bytes(values), dtype, 1.1386294361119891, 0.0, "x") == as_bytes(expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_offset_scales_what_the_model_multiplies_with(dtype: str) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(TORCH[dtype])
    expected = (1.2 * (values.double() + 1.0) - 1.0).to(values.dtype)
    assert scale_block(as_bytes(values), dtype, 1.2, 1.0, "x") == as_bytes(expected)


def test_bf16_rounds_to_nearest_even_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (np.arange(65536, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)
    ours = np.frombuffer(encode(values, "BF16"), np.uint16)
    theirs = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    number = ~np.isnan(values)
    assert (ours[number] == theirs[number]).all()
    assert np.isnan(decode(ours[~number].tobytes(), "BF16")).all()


def test_overflow_is_refused() -> None:
    top = np.array([60000.0, np.inf, np.nan], np.float16).tobytes()
    with pytest.raises(CheckpointError, match='Scaling "w" by 2 overflows F16'):
        scale_block(top, "F16", 2.0, 0.0, "w")
    assert np.isinf(np.frombuffer(scale_block(top[2:4], "F16", 2.0, 0.0, "w"), np.float16)).all()
    for dtype, bits in (("BF16", 0x7F7F), ("F32", 0x7F7FFFFF)):
        data = bits.to_bytes(2 if dtype == "BF16" else 4, "little")
        with pytest.raises(CheckpointError, match="overflows"):
            scale_block(data, dtype, 1.5, 0.0, "w")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_patched_checkpoint(tmp_path: Path, dtype: str) -> None:
    root = build(tmp_path / "src", hidden=48, dtype=dtype)
    checkpoint = read_checkpoint(root)
    query, norm = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
    edits = Edits(tensors=(ScaleRows(query, 1.25, ((0, 7), (40, 48))), ScaleRows(norm, 0.9, offset=1.0)))
    report = write_checkpoint(checkpoint, edits, tmp_path / "out")
    assert report.patched == ("model-00001-of-00002.safetensors",)
    assert "model-00002-of-00002.safetensors" in report.copied + report.cloned

    def load(tensors: Checkpoint, name: str) -> torch.Tensor:
        info = tensors.tensors[name]
        assert tensors.root is not None
        return torch.frombuffer(bytearray(read_tensor_bytes(tensors.root, info)), dtype=TORCH[dtype]).view(info.shape)

    after = read_checkpoint(tmp_path / "out")
    assert after.tensors == checkpoint.tensors
    wide = torch.float64 if dtype == "F32" else torch.float32
    before = load(checkpoint, query)
    expected = before.clone()
    for rows in (slice(0, 7), slice(40, 48)):
        expected[rows] = (before[rows].to(wide) * 1.25).to(before.dtype)
    assert torch.equal(load(after, query), expected)
    assert torch.equal(load(after, norm), (0.9 * (load(checkpoint, norm).double() + 1) - 1).to(before.dtype))
    for name, info in checkpoint.tensors.items():
        if name not in (query, norm):
            assert read_tensor_bytes(root, info) == read_tensor_bytes(tmp_path / "out", info)
    start = min(info.start for info in checkpoint.tensors.values())
    for shard in checkpoint.shards:
        assert (root / shard).read_bytes()[:start] == (tmp_path / "out" / shard).read_bytes()[:start]
    assert np.array_equal(read_tensor(tmp_path / "out", after.tensors[query]), expected.float().numpy())


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    """A tensor of several blocks whose rows don't divide the block size."""
    root = tmp_path / "src"
    root.mkdir()
    (root / "config.json").write_text(str(CONFIG).replace("'", '"').replace("False", "false"))
    (root / "model.safetensors").write_bytes(shard_bytes(spec(5, {"w": ("BF16", (1701, 2003)), "s": ("F32", ())})))
    checkpoint = read_checkpoint(root)
    edits = Edits(tensors=(ScaleRows("w", 1.1, ((1, 1700),)), ScaleRows("s", 3.0)))
    report = write_checkpoint(checkpoint, edits, tmp_path / "out")
    info = checkpoint.tensors["w"]
    before = torch.frombuffer(bytearray(read_tensor_bytes(root, info)), dtype=torch.bfloat16).view(info.shape)
    expected = before.clone()
    expected[1:1700] = (before[1:1700].float() * 1.1).bfloat16()
    assert read_tensor_bytes(tmp_path / "out", info) == as_bytes(expected)
    scalar = read_tensor(tmp_path / "out", checkpoint.tensors["s"])
    assert scalar == np.float32(3.0 * np.float64(read_tensor(root, checkpoint.tensors["s"])))
    assert set(report.tensor_sha256) == {"w", "s"}


@pytest.mark.parametrize(
    ("edits", "kind", "cause"),
    [
        ((ScaleRows("ghost", 1.0),), UsageError, 'no tensor "ghost"'),
        ((ScaleRows("w", float("nan")),), UsageError, "not finite"),
        ((ScaleRows("w", 1.0, ((0, 5),)),), UsageError, "Rows 0 to 5"),
        ((ScaleRows("w", 1.0, ((-1, 2),)),), UsageError, "Rows -1 to 2"),
        ((ScaleRows("w", 1.0, ((2, 1),)),), UsageError, "Rows 2 to 1"),
        ((ScaleRows("w", 1.0), ScaleRows("w", 2.0, ((1, 2),))), UsageError, "edited twice"),
        ((ScaleRows("q", 2.0),), UnsupportedError, "dtype F8_E4M3"),
        ((ScaleRows("i", 2.0),), UnsupportedError, "dtype I64"),
    ],
)
def test_refused_edits(tmp_path: Path, edits: tuple[ScaleRows, ...], kind: type[CtxforgeError], cause: str) -> None:
    root = tmp_path / "src"
    root.mkdir()
    (root / "config.json").write_text("{}")
    tensors = spec(0, {"w": ("BF16", (4, 2)), "q": ("F8_E4M3", (4,)), "i": ("I64", (2,))})
    (root / "model.safetensors").write_bytes(shard_bytes(tensors))
    with pytest.raises(kind, match=cause) as caught:
        write_checkpoint(read_checkpoint(root), Edits(tensors=edits), tmp_path / "out")
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
