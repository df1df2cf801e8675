"""How much tensors differ: against torch's own reading of every dtype, and across the borders of pieces."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ctxforge.checkpoint import TensorInfo
from ctxforge.differences import Amounts, contents
from ctxforge.differences.contents import Pair, compare_tensors
from ctxforge.differences.numbers import amounts

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "BOOL": torch.uint8,
}


def reference(before: bytes, after: bytes, dtype: str) -> Amounts:
    """The same from torch's conversion to float64, element by element in Python."""
    kind = TORCH[dtype]
    a, b = (torch.frombuffer(bytearray(data), dtype=kind).to(torch.float64).tolist() for data in (before, after))
    width = len(before) // len(a)
    pieces = [(before[i : i + width], after[i : i + width]) for i in range(0, len(before), width)]
    changed = [(x, y) for x, y, (p, q) in zip(a, b, pieces, strict=True) if p != q]
    finite = [(x, y) for x, y in changed if math.isfinite(x) and math.isfinite(y)]
    largest = max((abs(y - x) for x, y in finite), default=0.0)
    relative = max((abs(y - x) / max(abs(x), abs(y)) for x, y in finite if x or y), default=0.0)
    return Amounts(len(a), len(changed), largest, relative, len(changed) - len(finite))


@pytest.mark.parametrize("dtype", [name for name in TORCH if name.startswith("F8")])
def test_every_code_of_the_eight_bit_floats(dtype: str) -> None:
    """Some codes against all 256, so that each code's value counts."""
    codes = bytes(range(256))
    for code in range(0, 256, 17):
        before = bytes([code]) * 256
        found, wanted = amounts(before, codes, dtype), reference(before, codes, dtype)
        assert (found.changed, found.not_finite) == (255, wanted.not_finite)
        assert found.largest == pytest.approx(wanted.largest, rel=1e-6)
        assert found.largest_relative == pytest.approx(wanted.largest_relative, rel=1e-6)


@pytest.mark.parametrize("dtype", TORCH)
def test_random_bits(dtype: str) -> None:
    source = random.Random(dtype)
    before = bytearray(source.randbytes(8 * 40))
    after = bytearray(before)
    for _ in range(25):
        after[source.randrange(len(after))] ^= 1 << source.randrange(8)
    found, wanted = amounts(bytes(before), bytes(after), dtype), reference(bytes(before), bytes(after), dtype)
    assert (found.elements, found.changed, found.not_finite) == (wanted.elements, wanted.changed, wanted.not_finite)
    digits = 1e-6 if dtype in ("F16", "BF16") or dtype.startswith("F8") else 1e-12
    assert found.largest == pytest.approx(wanted.largest, rel=digits)
    assert found.largest_relative == pytest.approx(wanted.largest_relative, rel=digits)


def test_by_hand() -> None:
    before, after = struct.pack("<4f", 1.0, 2.0, 0.0, 5.0), struct.pack("<4f", 1.0, -2.0, 0.5, 5.0)
    assert amounts(before, after, "F32") == Amounts(4, 2, 4.0, 2.0, 0)
    # Minus zero has other bits and the same value; a NaN has no distance.
    before, after = struct.pack("<3f", 0.0, 1.0, 3.0), struct.pack("<3f", -0.0, math.nan, 3.0)
    assert amounts(before, after, "F32") == Amounts(3, 2, 0.0, 0.0, 1)
    large = struct.pack("<d", 1.7e308), struct.pack("<d", -1.7e308)
    assert amounts(*large, "F64").largest_relative == 2.0
    assert amounts(struct.pack("<2f", 3.0, 4.0), struct.pack("<2f", 0.0, 0.0), "C64") == Amounts(1, 1, 5.0, 1.0)
    assert amounts(b"\x12\x34", b"\x12\x35", "F4") == Amounts(2, 1, None, None)


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_and_stretches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Tensors around the size of a piece, at odd offsets in several files, against numpy on the whole arrays."""
    monkeypatch.setattr(contents, "PIECE", 64)
    monkeypatch.setattr(contents, "_STRETCH", 256)
    monkeypatch.setattr(contents, "_MOST_FILES", 3)
    monkeypatch.setattr(contents.os, "cpu_count", lambda: threads)
    source = np.random.default_rng(0)
    pairs, wanted, done = [], [], []
    for number, size in enumerate((16, 15, 17, 1, 64, 63, 65, 200, 1)):
        a = source.standard_normal(size).astype("<f4")
        b = a.copy()
        if number % 3:
            b[source.integers(size, size=3)] += np.float32(0.25)
            b[-1] += np.float32(1.0)
        names = [f"{number}.{side}" for side in "ab"]
        shifts = (number, 3 * number)
        for name, shift, values in zip(names, shifts, (a, b), strict=True):
            (tmp_path / name).write_bytes(b"x" * shift + values.tobytes() + b"tail")
        infos = [
            TensorInfo(str(number), "F32", (size,), name, shift, shift + 4 * size)
            for name, shift in zip(names, shifts, strict=True)
        ]
        pairs.append(Pair(infos[0], infos[1], (tmp_path / names[0], tmp_path / names[1])))
        apart = np.abs(b.astype(float) - a.astype(float))
        relative = apart / np.maximum(np.abs(a.astype(float)), np.abs(b.astype(float)))
        wanted.append((size, int((a != b).sum()), float(apart.max()), float(relative.max())) if number % 3 else None)
    found = compare_tensors(pairs, lambda at, total: done.append((at, total)))
    told = [
        None if one is None else (one.elements, one.changed, one.largest, pytest.approx(one.largest_relative))
        for one in found
    ]
    assert told == wanted
    total = sum(pair.before.nbytes for pair in pairs)
    assert sorted(done)[-1] == (total, total)
