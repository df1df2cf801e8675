"""Stretched tables equal references that are computed otherwise; everything around them stays byte for byte."""

from __future__ import annotations

import hashlib
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ctxforge.checkpoint import (
    Edits,
    ResampleRows,
    ScaleRows,
    TensorEdit,
    TensorInfo,
    WriteReport,
    estimate_write,
    file_sha256,
    materialise,
    read_checkpoint,
    read_tensor,
    read_tensor_bytes,
    resample,
    verify_integrity,
    write_checkpoint,
)
from ctxforge.checkpoint.types import Checkpoint
from ctxforge.errors import CtxforgeError, UnsupportedError, UsageError
from tests.checkpoint.builders import BYTES, Spec, digest, shard_bytes, spec

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
INDEX = "model.safetensors.index.json"


def checkpoint_of(root: Path, shards: Sequence[Spec], metadata: dict[str, object] | None = None) -> Checkpoint:
    """A checkpoint with these shards; with an index, where there is more than one or `metadata` is given."""
    root.mkdir()
    (root / "config.json").write_text("{}")
    mapping: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        single = len(shards) == 1 and metadata is None
        name = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (root / name).write_bytes(shard_bytes(tensors, {"format": "pt", "note": "é"}))
        mapping.update(dict.fromkeys(tensors, name))
    if len(shards) > 1 or metadata is not None:
        total = sum(len(data) for tensors in shards for _, _, data in tensors.values())
        index = {"metadata": {"total_size": total, **(metadata or {})}, "weight_map": mapping}
        (root / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return read_checkpoint(root)


def load(root: Path, info: TensorInfo) -> torch.Tensor:
    data = bytearray(read_tensor_bytes(root, info))
    if not data:
        return torch.empty(info.shape, dtype=TORCH[info.dtype])
    return torch.frombuffer(data, dtype=TORCH[info.dtype]).view(info.shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def places(count: int, rows: int) -> list[Fraction]:
    """Where each new row is read among `count` source rows."""
    return [min(Fraction(position * count, rows), Fraction(count - 1)) for position in range(rows)]


def stretched(table: torch.Tensor, rows: int, skip: int = 0, source_rows: int | None = None) -> torch.Tensor:
    """The reference: each element as an exact fraction, rounded to float64, then as torch rounds to the dtype."""
    body = table[skip:] if source_rows is None else table[skip : skip + source_rows]
    new = []
    for place in places(len(body), rows):
        below = math.floor(place)
        if place == below:
            new.append(body[below])
            continue
        pairs = zip(body[below].flatten().tolist(), body[below + 1].flatten().tolist(), strict=True)
        exact = [float(Fraction(a) + (place - below) * (Fraction(b) - Fraction(a))) for a, b in pairs]
        new.append(torch.tensor(exact, dtype=torch.float64).view(body.shape[1:]).to(table.dtype))
    return torch.cat([table[:skip], torch.stack(new)])


def test_integer_scale_is_torch_interpolate_with_the_last_row_repeated() -> None:
    """p/s on L0 rows is `align_corners` on the s (L0 - 1) + 1 rows between the two ends, then the last row again."""
    table = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (2, 3, 8):
        inner = torch.nn.functional.interpolate(table.T[None], size=scale * 12 + 1, mode="linear", align_corners=True)[
            0
        ].T
        wanted = torch.cat([inner, table[-1:].expand(scale - 1, -1)])
        rows = 13 * scale
        data = resample.resample_block(bits(table), "F64", (0, rows), 13, rows)
        found = torch.frombuffer(bytearray(data), dtype=torch.float64).view(rows, 5)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
        assert torch.equal(found[::scale], table)
        centred = torch.nn.functional.interpolate(table.T[None], size=rows, mode="linear")[0].T
        assert (centred[0] - found[0]).abs().max() == 0  # clamped, but the source rows themselves are gone
        assert (centred[scale:-scale:scale] - table[1:-1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize(("source_rows", "rows"), [(7, 7), (7, 8), (7, 20), (1, 5), (100, 1001), (64, 4096)])
def test_any_scale_is_numpys_interp(dtype: str, source_rows: int, rows: int) -> None:
    table = torch.randn(source_rows, 3, generator=torch.Generator().manual_seed(rows)).to(TORCH[dtype])
    data = resample.resample_block(bits(table), dtype, (0, rows), source_rows, rows)
    found = torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).view(rows, 3).double().numpy()
    places = np.arange(rows) * source_rows / rows
    columns = [np.interp(places, np.arange(source_rows), table[:, c].double().numpy()) for c in range(3)]
    unit = {"F64": 1e-13, "F32": 1e-7, "F16": 6e-4, "BF16": 4e-3}[dtype]
    assert np.abs(found - np.stack(columns, 1)).max() <= unit * table.double().abs().max()


def test_stretching_twice_by_whole_numbers_is_stretching_once() -> None:
    table = torch.randn(11, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twice = stretched(stretched(table, 33), 33 * 5)
    assert torch.allclose(twice, stretched(table, 165), rtol=0, atol=1e-14)
    aligned = table.T[None]
    for size in (33, 165):
        aligned = torch.nn.functional.interpolate(aligned, size=size, mode="linear", align_corners=True)
    once = torch.nn.functional.interpolate(table.T[None], size=165, mode="linear", align_corners=True)
    assert (aligned - once).abs().max() > 0.1  # aligned corners have no such property


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_rows_that_fall_on_source_rows_keep_their_bits(dtype: str) -> None:
    """Signed zeros, infinities, NaN payloads and subnormals among them."""
    width = BYTES[dtype]
    table = random.Random(0).randbytes(9 * 16 * width)
    new = resample.resample_block(table, dtype, (0, 27), 9, 27)
    row = 16 * width
    for position in range(9):
        assert new[3 * position * row : (3 * position + 1) * row] == table[position * row : (position + 1) * row]
    assert new[25 * row : 26 * row] == new[26 * row :] == table[-row:]


FLOATS = ("F32", "F16", "BF16")


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, tuple[str, tuple[int, ...]]]], list[TensorEdit], int, int]:
    """Shards, edits of some of their tensors, the seed of the data, and the size of a block."""
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = []
    edits: list[TensorEdit] = []
    for number in range(draw(st.integers(1, 3))):
        shard: dict[str, tuple[str, tuple[int, ...]]] = {}
        for place in range(draw(st.integers(1, 5))):
            name = f"t{number}.{place}"
            kind = draw(st.sampled_from(["keep", "keep", "scale", "stretch", "stretch"]))
            dtype = draw(st.sampled_from(FLOATS if kind != "keep" else (*FLOATS, "I64", "U8", "F8_E4M3")))
            shape = tuple(draw(st.lists(st.integers(1, 9), min_size=kind == "stretch", max_size=3)))
            shard[name] = (dtype, shape)
            if kind == "scale":
                edits.append(draw(scalings(name, shape)))
            elif kind == "stretch":
                skip = draw(st.integers(0, shape[0] - 1))
                source_rows = draw(st.none() | st.integers(1, shape[0] - skip))
                least = source_rows or shape[0] - skip
                edits.append(ResampleRows(name, draw(st.integers(least, 5 * least)), skip, source_rows))
        if draw(st.booleans()):  # as the library itself writes them
            shard = dict(sorted(shard.items(), key=lambda item: -BYTES[item[1][0]]))
        shards.append(shard)
    return shards, draw(st.permutations(edits)), draw(st.integers(0, 1000)), draw(st.sampled_from([1, 50, 2**19]))


@st.composite
def scalings(draw: st.DrawFn, name: str, shape: tuple[int, ...]) -> ScaleRows:
    factor, offset = draw(st.floats(-4, 4)), draw(st.sampled_from([0.0, 1.0]))
    if not shape or draw(st.booleans()):
        return ScaleRows(name, factor, None, offset)
    start, stop = sorted(draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
    return ScaleRows(name, factor, ((start, stop),), offset)


def reference(before: torch.Tensor, edit: TensorEdit | None) -> torch.Tensor:
    if isinstance(edit, ResampleRows):
        return stretched(before, edit.rows, edit.skip, edit.source_rows)
    if edit is None:
        return before
    wide = torch.float64 if before.dtype == torch.float32 or edit.offset else torch.float32
    after = before.clone()
    for start, stop in edit.rows or ((0, before.shape[0] if before.dim() else 1),):
        part = after[start:stop] if before.dim() else after
        part.copy_((edit.factor * (part.to(wide) + edit.offset) - edit.offset).to(before.dtype))
    return after


def would_misalign(shard: Spec, edits: dict[str, TensorEdit]) -> bool:
    old = new = 0
    for name, (dtype, shape, data) in shard.items():
        if old % BYTES[dtype] == 0 and new % BYTES[dtype] != 0:
            return True
        edit = edits.get(name)
        old += len(data)
        row = len(data) // shape[0] if shape else 0
        new += (edit.skip + edit.rows) * row if isinstance(edit, ResampleRows) else len(data)
    return False


@settings(max_examples=60, deadline=None)
@given(cases())
def test_random_shards_and_edits(
    case: tuple[list[dict[str, tuple[str, tuple[int, ...]]]], list[TensorEdit], int, int],
) -> None:
    shapes, edits, seed, block = case
    shards = [spec(seed + number, tensors) for number, tensors in enumerate(shapes)]
    by_name = {edit.tensor: edit for edit in edits}
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "src", Path(folder) / "out"
        before = checkpoint_of(root, shards)
        state = digest(root)
        made = Edits({"new.txt": b"x"}, tuple(edits))
        if any(would_misalign(shard, by_name) for shard in shards):
            with pytest.raises(UnsupportedError, match="odd place"):
                write_checkpoint(before, made, out)
            assert not out.exists()
            return
        estimate = estimate_write(before, made, out)
        seen: list[tuple[int, int]] = []
        small_blocks = mock.patch.object(resample, "RESAMPLE_BLOCK", block)
        with small_blocks, mock.patch.object(materialise, "_clone", return_value=False):
            report = write_checkpoint(before, made, out, checksum=True, progress=lambda *both: seen.append(both))
        assert digest(root) == state
        assert verify_integrity(out) == []
        after = read_checkpoint(out)
        assert list(after.tensors) == list(before.tensors)
        for name, info in before.tensors.items():
            found, edit = after.tensors[name], by_name.get(name)
            assert found.dtype == info.dtype
            data = read_tensor_bytes(out, found)
            if edit is None:
                assert found.shape == info.shape
                assert data == read_tensor_bytes(root, info)
                continue
            wanted = reference(load(root, info), edit)
            assert found.shape == tuple(wanted.shape)
            # Zeros may differ in sign where a factor is zero: torch and numpy agree on their value.
            assert data == bits(wanted) or torch.equal(load(out, found), wanted)
            assert report.tensor_sha256[name] == hashlib.sha256(data).hexdigest()
        assert set(report.tensor_sha256) == set(by_name)
        check_report(report, estimate.bytes_to_write, out, seen)
        hashed = sum((out / name).stat().st_size for name in (*report.copied, *report.patched))
        assert report.bytes_read == estimate.bytes_to_read + hashed
        assert estimate.patched == report.patched
        for shard in after.shards:
            with safe_open(out / shard, "pt") as opened:
                assert opened.metadata() == {"format": "pt", "note": "é"}
                for name in opened.keys():  # noqa: SIM118  a safe_open is no mapping
                    assert tuple(opened.get_slice(name).get_shape()) == after.tensors[name].shape


def check_report(report: WriteReport, estimated: int, out: Path, seen: list[tuple[int, int]]) -> None:
    """The counts against the files themselves."""
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    written = [*report.copied, *report.patched, *report.written]
    assert sorted(written) == sorted(sizes)
    assert not report.cloned
    assert report.bytes_written == estimated == sum(sizes.values())
    assert report.tensor_bytes_written == sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert report.sha256 == {name: file_sha256(out / name) for name in sizes}
    assert seen[-1] == (seen[-1][1], sum(sizes[name] for name in (*report.copied, *report.patched)))


def test_the_index_follows(tmp_path: Path) -> None:
    shards = [spec(0, {"wpe": ("BF16", (10, 4)), "x": ("BF16", (3,))}), spec(1, {"y": ("F32", (2, 2))})]
    metadata: dict[str, object] = {"total_parameters": 47, "format": "é"}
    before = checkpoint_of(tmp_path / "src", shards, metadata)
    report = write_checkpoint(before, Edits(tensors=(ResampleRows("wpe", 28, skip=2),)), tmp_path / "out")
    text = (tmp_path / "src" / INDEX).read_text()
    wanted = text.replace('"total_size": 102', '"total_size": 262').replace(": 47", ": 127")
    assert (tmp_path / "out" / INDEX).read_text() == wanted
    assert report.written == (INDEX,)
    assert report.sha256[INDEX] == hashlib.sha256(wanted.encode()).hexdigest()
    assert report.patched == ("model-00001-of-00002.safetensors",)
    scaled = write_checkpoint(before, Edits(tensors=(ScaleRows("wpe", 2.0),)), tmp_path / "same")
    assert INDEX in scaled.copied
    assert scaled.written == ()


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    """Rows of 4006 bytes, which don't divide the block, over some 40 blocks."""
    before = checkpoint_of(tmp_path / "src", [spec(5, {"w": ("BF16", (1701, 2003)), "z": ("U8", (5,))})])
    write_checkpoint(before, Edits(tensors=(ResampleRows("w", 5000, skip=1),)), tmp_path / "out")
    after = read_checkpoint(tmp_path / "out")
    table = load(tmp_path / "src", before.tensors["w"])
    body = table[1:].double()
    middle = []
    for u in places(1700, 5000):
        part = int(5000 * (u - math.floor(u)))
        middle.append(((5000 - part) * body[math.floor(u)] + part * body[math.ceil(u)]) / 5000)
    wanted = torch.cat([table[:1], torch.stack(middle).bfloat16()])
    assert read_tensor_bytes(tmp_path / "out", after.tensors["w"]) == bits(wanted)
    assert read_tensor_bytes(tmp_path / "out", after.tensors["z"]) == read_tensor_bytes(
        tmp_path / "src", before.tensors["z"]
    )
    assert np.array_equal(read_tensor(tmp_path / "out", after.tensors["w"]), wanted.float().numpy())


def test_an_off_by_the_offset_table_is_another_table(tmp_path: Path) -> None:
    """The control of all comparisons here: the wrong `skip` shows."""
    before = checkpoint_of(tmp_path / "src", [spec(5, {"w": ("F32", (18, 4))})])
    write_checkpoint(before, Edits(tensors=(ResampleRows("w", 34),)), tmp_path / "wrong")
    write_checkpoint(before, Edits(tensors=(ResampleRows("w", 32, skip=2),)), tmp_path / "right")
    wrong, right = (read_checkpoint(tmp_path / name) for name in ("wrong", "right"))
    assert wrong.tensors["w"].shape == right.tensors["w"].shape
    difference = load(tmp_path / "wrong", wrong.tensors["w"]) - load(tmp_path / "right", right.tensors["w"])
    assert difference.abs().max() > 0.5 * load(tmp_path / "src", before.tensors["w"]).abs().max()


@pytest.mark.parametrize(
    ("edits", "kind", "cause"),
    [
        ((ResampleRows("ghost", 9),), UsageError, 'no tensor "ghost"'),
        ((ResampleRows("w", 3),), UsageError, "4 rows of .* cannot be stretched to 3"),
        ((ResampleRows("w", 2**31),), UsageError, "cannot be stretched to 2147483648"),
        ((ResampleRows("w", 9, skip=4),), UsageError, "4 to keep and 0 to stretch do not fit"),
        ((ResampleRows("w", 9, skip=-1),), UsageError, "do not fit"),
        ((ResampleRows("w", 9, skip=1, source_rows=4),), UsageError, "1 to keep and 4 to stretch do not fit"),
        ((ResampleRows("w", 9, source_rows=0),), UsageError, "do not fit"),
        ((ResampleRows("s", 9),), UsageError, "has 0 rows"),
        ((ResampleRows("w", 9), ResampleRows("w", 9)), UsageError, "edited twice"),
        ((ResampleRows("w", 9), ScaleRows("w", 2.0, ((0, 1),))), UsageError, "edited twice"),
        ((ResampleRows("q", 9),), UnsupportedError, "F8_E4M3, which cannot be interpolated"),
    ],
)
def test_refused_edits(tmp_path: Path, edits: tuple[TensorEdit, ...], kind: type[CtxforgeError], cause: str) -> None:
    tensors = {"w": ("BF16", (4, 2)), "q": ("F8_E4M3", (4,)), "s": ("F32", ())}
    before = checkpoint_of(tmp_path / "src", [spec(0, tensors)])
    with pytest.raises(kind, match=cause) as caught:
        write_checkpoint(before, Edits(tensors=edits), tmp_path / "out")
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


_CHILD = """
import resource, sys
from pathlib import Path
from ctxforge.checkpoint import Edits, ResampleRows, read_checkpoint, write_checkpoint
root, out, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
write_checkpoint(read_checkpoint(root), Edits(tensors=(ResampleRows("w", rows),)), out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """64 MB to 160 MB of table, against 64 kB to 160 kB."""
    peaks = {}
    for name, rows in (("small", 32), ("large", 32768)):
        root = tmp_path / name
        root.mkdir()
        (root / "config.json").write_text("{}")
        (root / "model.safetensors").write_bytes(shard_bytes({"w": ("BF16", (rows, 1024), bytes(rows * 2048))}))
        command = [sys.executable, "-c", _CHILD, str(root), str(tmp_path / f"{name}-out"), str(rows * 5 // 2)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = int(ran.stdout) / 1024
    assert read_checkpoint(tmp_path / "large-out").tensors["w"].shape == (81920, 1024)
    assert peaks["large"] - peaks["small"] < 24, peaks
