"""Two checkpoints compared: real conversions, one flipped byte here and there, other layouts of the same tensors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ctxforge
from ctxforge.checkpoint.header import read_header
from ctxforge.differences import JsonChange, differences
from ctxforge.errors import CheckpointError, UsageError
from ctxforge.sources import bundled_model
from tests.checkpoint import builders


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return builders.build(tmp_path / "a", shards=2)


@pytest.fixture
def twin(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "b")
    return tmp_path / "b"


def flip(path: Path, offset: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)


def shard(root: Path, number: int = 1) -> Path:
    return root / f"model-{number:05d}-of-00002.safetensors"


class TestConversions:
    def test_a_config_only_conversion(self, tmp_path: Path) -> None:
        out = ctxforge.extend("bundled", method="yarn", to="4x", out=tmp_path / "out").out
        found = differences("bundled", out)
        assert found.differ
        assert found.complete
        config = {change.path: (change.kind, change.before, change.after) for change in found.json[0].changes}
        assert config[("max_position_embeddings",)] == ("changed", 512, 2048)
        assert config[("rope_parameters", "factor")] == ("added", None, 4.0)
        assert [(one.file, [change.path for change in one.changes]) for one in found.json[1:]] == [
            ("tokenizer_config.json", [("model_max_length",)])
        ]
        assert found.tensors == ()
        assert [(one.file, one.kind) for one in found.files] == [("ctxforge.json", "added")]
        (table,) = found.rotary
        assert (table.before, table.after) == ("no scaling, base 10000", "yarn factor 4 from 512, base 10000")
        recorded = json.loads((out / "ctxforge.json").read_text())["plan"]["tables"][0]
        # From plain frequencies the divisor change is the divisor itself, which the plan recorded.
        assert table.largest_change == pytest.approx(max(recorded["divisors"]), rel=1e-12)
        assert table.largest_change == pytest.approx(4.0)
        assert table.pairs_changed == sum(abs(divisor - 1) > 1e-9 for divisor in recorded["divisors"])
        assert table.temperature == pytest.approx((1.0, 1.1386294361119891))
        assert table.lengths == (512, 2048)

    def test_hardlinked_weights_are_not_read(self, tmp_path: Path) -> None:
        source = shutil.copytree(bundled_model(), tmp_path / "source")
        linked = ctxforge.extend(source, method="yarn", to="4x", out=tmp_path / "out", link=True).out
        found = differences(source, linked)
        assert found.bytes_read == 0
        assert found.bytes_skipped == sum(t.nbytes for t in read_header(linked / "model.safetensors", "m").tensors)
        assert found.tensors == ()

    def test_folded_weights_against_torch(self, tmp_path: Path) -> None:
        out = ctxforge.extend("bundled", method="ntk-by-parts", to="4x", out=tmp_path / "out").out
        found = differences("bundled", out)
        before, after = (load_file(root / "model.safetensors") for root in (bundled_model(), out))
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert [one.name for one in found.tensors] == sorted(changed)
        assert len(changed) == 5
        for one in found.tensors:
            a, b = before[one.name].double(), after[one.name].double()
            apart = (b - a).abs()
            scale = torch.maximum(a.abs(), b.abs())
            assert one.amounts is not None
            assert one.amounts.changed == int((a != b).sum())
            assert one.amounts.largest == pytest.approx(apart.max().item(), rel=1e-6)
            relative = (apart / scale.clamp_min(1e-300)).max().item()
            assert one.amounts.largest_relative == pytest.approx(relative, rel=1e-6)
        assert list(found.by_group) == ["model.layers.*.self_attn.q_proj.weight"]
        # ntk-by-parts has no temperature: what yarn's keys imply is taken back in the weights.
        (table,) = found.rotary
        assert table.temperature[1] is not None
        assert table.folded == (1.0, pytest.approx(table.temperature[1] ** -2))

    def test_a_changed_base_shows_in_the_slowest_pair(self, tmp_path: Path) -> None:
        out = ctxforge.extend("bundled", method="abf:base=160000", to="4x", out=tmp_path / "out").out
        (table,) = differences("bundled", out).rotary
        assert (table.before, table.after) == ("no scaling, base 10000", "no scaling, base 160000")
        assert table.pair == 31
        assert table.largest_change == pytest.approx(16 ** (62 / 64))
        assert table.pairs_changed == 31

    def test_backwards(self, tmp_path: Path) -> None:
        out = ctxforge.extend("bundled", method="yarn+resonance", to="4x", out=tmp_path / "out").out
        back = differences(out, "bundled")
        assert back.rotary[0].largest_change is not None
        assert back.rotary[0].largest_change < 1
        assert {change.kind for change in back.json[0].changes} == {"changed", "removed"}

    def test_the_same_twice(self) -> None:
        found = differences("bundled", bundled_model())
        assert not found.differ
        assert found.complete
        assert found.bytes_read == 0
        assert not found.rotary[0].changed


class TestBytes:
    def test_one_flipped_byte_of_one_tensor(self, source: Path, twin: Path) -> None:
        info = next(t for t in read_header(shard(twin), "m").tensors if t.name.endswith("1.self_attn.k_proj.weight"))
        flip(shard(twin), info.start + 6)
        found = differences(source, twin)
        (one,) = found.tensors
        assert (one.name, one.kind) == ("model.layers.1.self_attn.k_proj.weight", "bytes")
        assert one.amounts is not None
        assert (one.amounts.elements, one.amounts.changed) == (64, 1)
        word = shard(source).read_bytes()[info.start + 6 : info.start + 8]
        a = torch.frombuffer(bytearray(word), dtype=torch.bfloat16).item()
        b = torch.frombuffer(bytearray([word[0] ^ 1, word[1]]), dtype=torch.bfloat16).item()
        assert one.amounts.largest == pytest.approx(abs(b - a))
        assert one.amounts.largest_relative == pytest.approx(abs(b - a) / max(abs(a), abs(b)))
        assert found.json == ()
        assert found.headers == ()
        assert found.files == ()

    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("last", [False, True])
    def test_the_first_and_the_last_byte_count(self, source: Path, twin: Path, number: int, last: bool) -> None:
        tensors = read_header(shard(twin, number), "m").tensors
        flip(shard(twin, number), tensors[-1].end - 1 if last else tensors[0].start)
        assert [one.name for one in differences(source, twin).tensors] == [tensors[-1 if last else 0].name]

    def test_a_flipped_byte_of_padding_is_told_and_is_no_difference(self, source: Path, twin: Path) -> None:
        data = shard(twin).read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert data[8 + length - 1 : 8 + length] == b" "
        flip(shard(twin), 8 + length - 1, 0x20 ^ 0x0A)
        found = differences(source, twin)
        assert [(one.file, one.metadata, one.spelling) for one in found.headers] == [(shard(twin).name, (), True)]
        assert found.tensors == ()
        assert not found.differ

    def test_a_flipped_byte_of_the_metadata_is_a_difference_of_the_file(self, source: Path, twin: Path) -> None:
        flip(shard(twin), shard(twin).read_bytes().index(b'"pt"') + 1)
        found = differences(source, twin)
        (header,) = found.headers
        assert header.metadata == (JsonChange(("format",), "changed", "pt", "qt"),)
        assert not header.spelling
        assert found.tensors == ()
        assert found.differ

    def test_a_file_that_is_neither_json_nor_weights(self, source: Path, twin: Path) -> None:
        flip(twin / "LICENSE", 0)
        (twin / "templates" / "chat.jinja").unlink()
        (twin / "notes.txt").write_text("new")
        found = differences(source, twin)
        assert [(one.file, one.kind, one.sizes) for one in found.files] == [
            ("LICENSE", "changed", (10, 10)),
            ("notes.txt", "added", (None, 3)),
            ("templates/chat.jinja", "removed", (7, None)),
        ]

    def test_formatting_and_key_order_are_told_and_are_no_difference(self, source: Path, twin: Path) -> None:
        config = json.loads((twin / "config.json").read_text())
        (twin / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
        found = differences(source, twin)
        assert [(one.file, one.changes) for one in found.json] == [("config.json", ())]
        assert not found.differ

    def test_json_that_is_none_is_compared_by_bytes(self, source: Path, twin: Path) -> None:
        (twin / "tokenizer.json").write_text("{,}")
        assert [one.file for one in differences(source, twin).files] == ["tokenizer.json"]


class TestTensors:
    def test_another_sharding_is_told_and_is_no_difference(self, source: Path, tmp_path: Path) -> None:
        single = builders.build(tmp_path / "single", shards=1)
        (single / "model.safetensors").unlink()
        tensors = {**builders.spec(1, builders.llama_layers(0, 2)), **builders.spec(2, builders.llama_layers(2, 4))}
        (single / "model.safetensors").write_bytes(builders.shard_bytes(dict(reversed(tensors.items()))))
        found = differences(source, single)
        assert found.tensors == ()
        assert not found.differ
        assert (found.sharding.files, found.sharding.moved) == ((2, 1), 20)
        assert found.bytes_read == sum(len(data) for _, _, data in tensors.values())
        # Negative control: in the other layout a changed byte is found all the same.
        flip(single / "model.safetensors", -1)
        assert [one.name for one in differences(source, single).tensors] == ["model.layers.0.self_attn.q_proj.weight"]

    def test_added_removed_reshaped_and_retyped(self, tmp_path: Path) -> None:
        one = builders.build(tmp_path / "one", shards=1)
        other = builders.build(tmp_path / "other", shards=1)
        tensors = builders.spec(1, builders.llama_layers(0, 2))
        del tensors["model.layers.0.self_attn.o_proj.weight"]
        dtype, _shape, data = tensors["model.layers.0.self_attn.k_proj.weight"]
        tensors["model.layers.0.self_attn.k_proj.weight"] = (dtype, (4, 16), data)
        tensors["model.layers.1.input_layernorm.weight"] = ("F16", (8,), bytes(16))
        tensors["model.layers.2.input_layernorm.weight"] = ("F16", (8,), bytes(16))
        (other / "model.safetensors").write_bytes(builders.shard_bytes(tensors))
        found = differences(one, other)
        assert [(change.name, change.kind) for change in found.tensors] == [
            ("model.layers.0.self_attn.k_proj.weight", "shape"),
            ("model.layers.0.self_attn.o_proj.weight", "removed"),
            ("model.layers.1.input_layernorm.weight", "dtype"),
            ("model.layers.2.input_layernorm.weight", "added"),
        ]
        assert found.tensor_counts == (10, 10)

    def test_recorded_hashes_are_believed_only_when_asked(self, source: Path, twin: Path) -> None:
        name = shard(source).name
        for root in (source, twin):
            (root / "ctxforge.json").write_text(json.dumps({"files": {name: "0" * 64}}))
        flip(shard(twin), -1)
        assert len(differences(source, twin).tensors) == 1
        trusting = differences(source, twin, trust_recorded=True)
        assert trusting.tensors == ()
        assert trusting.bytes_skipped == sum(t.nbytes for t in read_header(shard(source), "m").tensors)

    def test_bin_weights_are_files(self, tmp_path: Path) -> None:
        roots = [builders.build(tmp_path / name, shards=1) for name in "ab"]
        for root in roots:
            (root / "model.safetensors").unlink()
            (root / "pytorch_model.bin").write_bytes(b"pickled")
        assert not differences(*roots).differ
        (roots[1] / "pytorch_model.bin").write_bytes(b"Pickled")
        found = differences(*roots)
        assert [(one.file, one.kind) for one in found.files] == [("pytorch_model.bin", "changed")]
        mixed = differences(roots[0], builders.build(tmp_path / "c", shards=1))
        assert not mixed.complete


class TestBadInput:
    def test_what_is_no_checkpoint(self, tmp_path: Path, source: Path) -> None:
        with pytest.raises(UsageError, match="no file or folder"):
            differences(tmp_path / "no:where", source)
        (tmp_path / "empty").mkdir()
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            differences(source, tmp_path / "empty")

    def test_a_config_that_is_not_understood_is_said_and_compared(self, source: Path, twin: Path) -> None:
        config = json.loads((twin / "config.json").read_text())
        (twin / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
        found = differences(source, twin)
        (table,) = found.rotary
        assert table.changed
        assert table.after.startswith("not understood: model type 'unheard-of'")
        assert found.json[0].changes[0].path == ("model_type",)

    def test_a_shard_that_shrinks_meanwhile(self, source: Path, twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from ctxforge.differences import compare

        whole = compare.tensor_differences

        def shrunk(*arguments: object) -> object:
            os.truncate(shard(twin), shard(twin).stat().st_size - 1)
            return whole(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(compare, "tensor_differences", shrunk)
        with pytest.raises(CheckpointError, match="ends early"):
            differences(source, twin)
