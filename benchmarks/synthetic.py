"""Make a Llama-shaped bf16 checkpoint of a given size: `python benchmarks/synthetic.py DIR --gigabytes 1`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from ctxforge.checkpoint import write_safetensors_stream

SHARDS = 4
VOCABULARY = 32_000
BLOCK = 4 * 1024 * 1024

Spec = tuple[str, str, tuple[int, ...]]


def shape_for(gigabytes: float) -> tuple[int, int, int]:
    """Hidden size, feed-forward size and number of layers that come closest to `gigabytes`."""
    hidden, inner = (4096, 11008) if gigabytes >= 4 else (2048, 5632) if gigabytes >= 0.5 else (256, 704)
    layer = 2 * (4 * hidden * hidden + 3 * hidden * inner)
    return hidden, inner, max(SHARDS, round((gigabytes * 1e9 - 4 * VOCABULARY * hidden) / layer))


def tensors(hidden: int, inner: int, layers: int) -> list[Spec]:
    made: list[Spec] = [("model.embed_tokens.weight", "BF16", (VOCABULARY, hidden))]
    for layer in range(layers):
        base = f"model.layers.{layer}"
        made += [(f"{base}.self_attn.{part}_proj.weight", "BF16", (hidden, hidden)) for part in "qkvo"]
        made += [(f"{base}.mlp.{part}_proj.weight", "BF16", (inner, hidden)) for part in ("gate", "up")]
        made += [(f"{base}.mlp.down_proj.weight", "BF16", (hidden, inner))]
        made += [(f"{base}.{part}_layernorm.weight", "BF16", (hidden,)) for part in ("input", "post_attention")]
    return [*made, ("model.norm.weight", "BF16", (hidden,)), ("lm_head.weight", "BF16", (VOCABULARY, hidden))]


def data(seed: int, nbytes: int) -> Iterator[bytes]:
    """Random bf16 numbers of either sign between 2^-7 and 2^-5."""
    import numpy as np

    source = np.random.default_rng(seed)
    for start in range(0, nbytes, BLOCK):
        count = min(BLOCK, nbytes - start) // 2
        bits = np.frombuffer(source.bytes(2 * count), np.uint16)
        yield ((bits & np.uint16(0x80FF)) | np.uint16(0x3C00)).tobytes()


def make(root: Path, gigabytes: float, seed: int = 0) -> Path:
    """Write the checkpoint to the new folder `root`: four shards, an index, a config and a tokenizer config."""
    hidden, inner, layers = shape_for(gigabytes)
    specs = tensors(hidden, inner, layers)
    sizes = {name: 2 * rows * (rest[0] if rest else 1) for name, _, (rows, *rest) in specs}
    total = sum(sizes.values())
    root.mkdir(parents=True)
    shards: list[list[Spec]] = [[] for _ in range(SHARDS)]
    done = 0
    for spec in specs:
        shards[min(SHARDS - 1, done * SHARDS // total)].append(spec)
        done += sizes[spec[0]]
    mapping: dict[str, str] = {}
    number = {name: index for index, (name, _, _) in enumerate(specs)}
    for index, part in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{SHARDS:05d}.safetensors"
        write_safetensors_stream(root / file, part, lambda name: data(seed * 100_003 + number[name], sizes[name]))
        mapping.update(dict.fromkeys((name for name, _, _ in part), file))
    index = {"metadata": {"total_size": total}, "weight_map": mapping}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (root / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (root / "tokenizer_config.json").write_text('{\n  "model_max_length": 4096\n}\n')
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(make(options.root, options.gigabytes, options.seed))
