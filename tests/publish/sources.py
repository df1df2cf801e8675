"""Checkpoints to publish: the bundled model in three shards, one of which no fold touches, and a tiny one of ones."""

from __future__ import annotations

import json
from pathlib import Path

from ctxforge.checkpoint import read_checkpoint, read_tensor_bytes, write_safetensors_stream
from ctxforge.sources import bundled_model
from tests.llama_folder import CONFIG, safetensors_bytes

CARD = b"---\nlicense: mit\nlanguage: [en]\n---\n# The source\n\nIts own words.\n"
FIRST, MIDDLE, LAST = (f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))
SHARDS = (FIRST, MIDDLE, LAST)


def sharded_bundled(folder: Path) -> Path:
    """The bundled model: embeddings and norms in the first shard, half of the layers in each of the others."""
    folder.mkdir(parents=True)
    tensors = read_checkpoint(bundled_model()).tensors
    layers = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")})
    half = layers[len(layers) // 2]
    place = {}
    for name in tensors:
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") and "self_attn" in name else -1
        place[name] = FIRST if layer < 0 else MIDDLE if layer < half else LAST
    for shard in SHARDS:
        inside = [info for name, info in tensors.items() if place[name] == shard]
        write_safetensors_stream(
            folder / shard,
            [(info.name, info.dtype, info.shape) for info in inside],
            lambda name: [read_tensor_bytes(bundled_model(), tensors[name])],
        )
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (bundled_model() / name).is_file():
            (folder / name).write_bytes((bundled_model() / name).read_bytes())
    (folder / "README.md").write_bytes(CARD)
    (folder / "LICENSE").write_text("As the source says.\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\nsource.line text\n")
    return folder


def ones(folder: Path, *, shards: int = 2) -> Path:
    """A Llama of 256 parameters a layer, one layer a shard, all ones: a few kilobytes."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": shards}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 4096}, indent=2))
    (folder / "README.md").write_bytes(CARD)
    weight_map = {}
    for i in range(shards):
        shapes = {f"model.layers.{i}.self_attn.q_proj.weight": (16, 16), f"model.layers.{i}.other{i}.weight": (3 + i,)}
        if i == 0:
            shapes["model.embed_tokens.weight"] = (8, 16)
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        data = safetensors_bytes(shapes)
        start = 8 + int.from_bytes(data[:8], "little")
        (folder / name).write_bytes(data[:start] + b"\x80\x3f" * ((len(data) - start) // 2))
        weight_map |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def contents(folder: Path) -> dict[str, bytes | Path]:
    """The files of a folder, as `HubServer.add_repo` takes them."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
