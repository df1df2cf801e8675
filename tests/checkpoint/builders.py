"""Small checkpoints made byte by byte, independently of the package that is tested and without torch."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "F8_E4M3": 1}
Spec = dict[str, tuple[str, tuple[int, ...], bytes]]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def spec(seed: int, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Spec:
    """Random data whose 16- and 32-bit floats are all finite and of ordinary size."""
    source = random.Random(seed)
    made: Spec = {}
    for name, (dtype, shape) in tensors.items():
        width = BYTES[dtype]
        data = bytearray(source.randbytes(numel(shape) * width))
        if dtype in ("F64", "F32", "F16", "BF16"):
            # Clear the exponent's second-highest bit region: |w| < 2 and never NaN.
            for index in range(width - 1, len(data), width):
                data[index] = (data[index] & 0x80) | 0x3B
        made[name] = (dtype, shape, bytes(data))
    return made


def shard_bytes(tensors: Spec, metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata if metadata is not None else {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return raw_shard(json.dumps(header).encode(), b"".join(data for _, _, data in tensors.values()))


def raw_shard(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def llama_layers(first: int, last: int, hidden: int = 8, dtype: str = "BF16") -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(first, last):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"model.layers.{layer}.self_attn.{part}.weight"] = (dtype, (hidden, hidden))
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = (dtype, (hidden,))
    return tensors


def build(root: Path, shards: int = 2, hidden: int = 8, dtype: str = "BF16", seed: int = 0) -> Path:
    """A checkpoint with `shards` shards (1: a single file) and tokenizer sidecars."""
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (root / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656, "pad": "é"}')
    (root / "generation_config.json").write_text('{\n  "bos_token_id": 1\n}')
    (root / "tokenizer.json").write_text("{}")
    (root / "LICENSE").write_text("Apache-2.0")
    (root / "templates").mkdir()
    (root / "templates" / "chat.jinja").write_text("{{ x }}")
    mapping: dict[str, str] = {}
    total = 0
    for number in range(1, shards + 1):
        name = "model.safetensors" if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        tensors = spec(seed + number, llama_layers(2 * number - 2, 2 * number, hidden, dtype))
        (root / name).write_bytes(shard_bytes(tensors))
        mapping.update(dict.fromkeys(tensors, name))
        total += sum(len(data) for _, _, data in tensors.values())
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return root


def add_clutter(root: Path) -> None:
    """What real repositories hold besides the model, none of which may be carried over."""
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "params.json", "m.gguf"):
        (root / name).write_bytes(b"clutter")
    for folder in ("original", ".git", ".cache", "onnx"):
        (root / folder).mkdir()
        (root / folder / "x").write_bytes(b"clutter")


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def digest(root: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        state.update(f"{path.relative_to(root)} {stat.st_mode} {stat.st_mtime_ns} {stat.st_size}\n".encode())
        if path.is_file():
            state.update(path.read_bytes())
    return state.hexdigest()
