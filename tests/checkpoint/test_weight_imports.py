"""`.bin` and GGUF weights become safetensors once, in a cache keyed by content."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ctxforge.checkpoint import Edits, bins, fetch, read_checkpoint, verify_integrity, write_checkpoint
from ctxforge.checkpoint.rewrite import write_safetensors_stream
from ctxforge.errors import CheckpointError, InternalError, ResourceError, UnsupportedError, UsageError
from tests.checkpoint.builders import CONFIG


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imports"


def bin_folder(root: Path, shards: list[dict[str, object]], tie: bool = False, **save: object) -> Path:
    root.mkdir()
    (root / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": tie}, indent=2))
    (root / "tokenizer.json").write_text("{}")
    names = [f"pytorch_model-{n + 1:05d}-of-{len(shards):05d}.bin" for n in range(len(shards))]
    if len(shards) == 1:
        names = ["pytorch_model.bin"]
    else:
        mapping = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        (root / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, root / name, **save)
    return root


def loaded(root: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(root.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_shards_keep_their_partition(tmp_path: Path, cache: Path, zipped: bool) -> None:
    base = torch.randn(6, 4)
    first = {"embed": base, "view": base[1:3], "turned": base.t(), "half": torch.randn(3).half()}
    second = {
        "scalar": torch.tensor(2.5),
        "ids": torch.arange(3),
        "empty": torch.zeros(0, 2),
        "b": torch.ones(5).bfloat16(),
    }
    root = bin_folder(tmp_path / "src", [first, second], _use_new_zipfile_serialization=zipped)
    before = read_checkpoint(root)
    assert (before.weights, dict(before.tensors), len(before.shards)) == ("bin", {}, 2)
    after = fetch(before)
    assert after.root is not None
    assert after.root.parent == cache
    assert after.source == before.source
    assert after.shards == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert verify_integrity(after.root) == []
    found = loaded(after.root)
    assert set(found) == set(first) | set(second)
    for name, tensor in (first | second).items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert after.config == before.config
    assert "tokenizer.json" in after.file_sizes
    assert not any(name.endswith((".bin", ".bin.index.json")) for name in after.file_sizes)
    stamp = after.root.stat().st_ino
    again = fetch(read_checkpoint(root))
    assert again.root is not None
    assert again.root.stat().st_ino == stamp
    assert [path.name for path in cache.iterdir()] == [after.root.name]
    report = write_checkpoint(after, Edits({"config.json": b"{}"}), tmp_path / "out")
    assert set(loaded(report.out)) == set(found)


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights(tmp_path: Path, tie: bool) -> None:
    embed = torch.randn(6, 4)
    root = bin_folder(tmp_path / "src", [{"model.embed_tokens.weight": embed, "lm_head.weight": embed}], tie=tie)
    after = fetch(read_checkpoint(root))
    assert after.shards == ("model.safetensors",)
    assert ("lm_head.weight" in after.tensors) is not tie


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bins_that_are_refused(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad: dict[str, tuple[list[dict[str, object]] | bytes, type[Exception], str]] = {
        "code": (pickle.dumps({"a": Evil()}), CheckpointError, "cannot be read as plain tensors"),
        "noise": (b"\x00" * 100, CheckpointError, "cannot be read as plain tensors"),
        "empty": (b"", CheckpointError, "cannot be read as plain tensors"),
        "nested": ([{"state_dict": {"a": torch.ones(1)}}], CheckpointError, "something other than a dictionary"),
        "twice": ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], CheckpointError, "in two weight files"),
        "extra": ([{"a": torch.ones(1)}, {"a": torch.ones(1)}], CheckpointError, "index.json does not name it"),
        "sparse": ([{"a": torch.eye(3).to_sparse()}], UnsupportedError, "sparse"),
        "complex": ([{"a": torch.ones(2, dtype=torch.complex128)}], UnsupportedError, "complex128"),
    }
    for name, (content, kind, cause) in bad.items():
        root = bin_folder(tmp_path / name, content if isinstance(content, list) else [{}])
        if isinstance(content, bytes):
            (root / "pytorch_model.bin").write_bytes(content)
        if name == "twice":
            torch.save({"a": torch.ones(1), "b": torch.ones(1)}, root / "pytorch_model-00002-of-00002.bin")
        with pytest.raises(kind, match=cause):
            fetch(read_checkpoint(root))
        assert not cache.exists() or not list(cache.iterdir()), name
    assert "executed" not in capsys.readouterr().out
    root = bin_folder(tmp_path / "gap", [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    index = root / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace('"b":', '"ghost":'))
    with pytest.raises(CheckpointError, match='names the tensor "ghost"'):
        fetch(read_checkpoint(root))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bin_folder(tmp_path / "src", [{"a": torch.ones(1)}])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError):
        fetch(read_checkpoint(root))


def test_the_stream_writer_checks_what_it_is_given(tmp_path: Path) -> None:
    size = write_safetensors_stream(
        tmp_path / "x", [("a", "F32", (2,)), ("b", "U8", (3,))], lambda n: [bytes(8 if n == "a" else 3)]
    )
    assert size == (tmp_path / "x").stat().st_size
    assert set(load_file(tmp_path / "x")) == {"a", "b"}
    with pytest.raises(InternalError, match="gave 4 bytes instead of 8"):
        write_safetensors_stream(tmp_path / "y", [("a", "F32", (2,))], lambda _: [bytes(4)])


def tiny_gguf(path: Path, architecture: str = "llama") -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """A two-layer Llama in F32 with a tokenizer of single characters."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    hidden, heads, inner = 16, 2, 32
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "a", "b"]
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([2, 3, 3, *([6] * 256), 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    tensors = {
        "token_embd.weight": (len(pieces), hidden),
        "output_norm.weight": (hidden,),
        "output.weight": (len(pieces), hidden),
    }
    for layer in range(2):
        for name, shape in {
            "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (hidden, hidden),
            "attn_v": (hidden, hidden), "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
        }.items():  # fmt: skip
            tensors[f"blk.{layer}.{name}.weight"] = shape
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    for name, value in made.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def test_gguf(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "tiny.gguf"
    made = tiny_gguf(path)
    before = read_checkpoint(path)
    assert (before.weights, before.shards, dict(before.tensors)) == ("gguf", ("tiny.gguf",), {})
    assert before.config["model_type"] == "llama"
    assert before.config["max_position_embeddings"] == 128
    assert before.config_text.startswith("{")
    assert read_checkpoint(path.parent).weights == "gguf"
    after = fetch(before)
    assert after.root is not None
    assert after.weights == "safetensors"
    assert after.dtypes == {"BF16": len(made)}
    assert "quantization_config" not in after.config
    assert "tokenizer_config.json" in after.file_sizes
    assert verify_integrity(after.root) == []
    for file in after.root.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444
    found = loaded(after.root)
    for ours, theirs in (("model.embed_tokens.weight", "token_embd.weight"), ("lm_head.weight", "output.weight")):
        assert torch.equal(found[ours], torch.from_numpy(made[theirs]).bfloat16())
    again = read_checkpoint(str(path))  # now from the import, without transformers
    assert again.config == after.config
    assert fetch(again).root == after.root
    assert [file.name for file in cache.iterdir()] == [after.root.name]
    write_checkpoint(after, Edits({"config.json": b"{}"}), tmp_path / "models" / "out")  # beside the GGUF file


def test_gguf_that_transformers_cannot_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd.gguf"
    tiny_gguf(path, "odd")
    with pytest.raises(UnsupportedError, match=r"cannot import odd\.gguf"):
        read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises((UnsupportedError, CheckpointError)):
        read_checkpoint(path)
    path.write_bytes(b"GGUF\x01\0\0\0" + bytes(50))
    with pytest.raises(UnsupportedError, match="version 1"):
        read_checkpoint(path)


def test_gguf_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def missing(*_: object, **__: object) -> None:
        raise ImportError("gguf")

    path = tmp_path / "tiny.gguf"
    tiny_gguf(path)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", missing)
    with pytest.raises(UsageError, match="needs the gguf package") as caught:
        read_checkpoint(path)
    assert "ctxforge-llm[gguf]" in caught.value.remedy


def test_dtype_names_agree_with_the_library() -> None:
    from safetensors.torch import save

    for dtype, name in bins._dtypes().items():
        header = save({"x": torch.zeros(1).to(dtype)})
        assert f'"dtype":"{name}"'.encode() in header
