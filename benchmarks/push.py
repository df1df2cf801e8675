"""Publishing a config-only conversion: bytes over the wire and time, against huggingface_hub's upload_folder.

    python benchmarks/push.py [--runs N] [--megabytes 200] [--folder DIR]

1. `ctxforge extend org/big --push` of a synthetic repository of 8 GB in 2 shards (sparse files, so that it costs no
   disk), from an empty cache, against a Hub-compatible server on loopback. Goals: at most 1 MB moved, at most 3 s.
2. The same of a repository of `--megabytes`, in turns with `upload_folder` of the very files that were published, into
   a repository of its own. Both are whole processes. The two repositories must hold the same files: paths, git ids and
   SHA-256 of contents are compared. The peer is given the converted folder: the download and the conversion that it
   takes to have one are not counted.

Bytes are counted by the server: bodies of requests and answers. Processor time is that of the process; the server runs
in the benchmark's own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.hub_server import HubServer

GB = 10**9
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[2], exist_ok=True)
api.upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1], commit_message="Upload")
"""
DOWNLOAD = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1], local_dir=sys.argv[2])"


def source(folder: Path, total: int, *, dense: bool) -> dict[str, bytes | Path]:
    """A Llama checkpoint of about `total` bytes in two shards; sparse, or filled with random bytes."""
    folder.mkdir()
    names = [f"model.layers.{i}.{part}.weight" for i in range(32) for part in ("self_attn.q_proj", "mlp.up_proj")]
    columns = 4096
    rows = total // (2 * columns * len(names))
    weight_map = {}
    for number in (1, 2):
        shard = f"model-{number:05}-of-00002.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names[number - 1 :: 2]:
            size = 2 * columns * rows
            header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [offset, offset + size]}
            weight_map[name] = shard
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            if dense:
                for _ in range(offset // (1 << 20)):
                    file.write(os.urandom(1 << 20))
            file.truncate(8 + len(text) + offset)
    index = {"metadata": {"total_size": 2 * columns * rows * len(names)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 4096}, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}, indent=2))
    (folder / "tokenizer.model").write_bytes(os.urandom(500_000))
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n# A model\n")
    (folder / "LICENSE.txt").write_text("A licence.\n" * 600)
    return {path.name: path for path in folder.iterdir()}


Figures = tuple[float, float, int]


def timed(hub: HubServer, environment: dict[str, str], *command: str) -> Figures:
    """Seconds, seconds of processor time and bytes moved of a process."""
    hub.reset()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor, hub.received + hub.sent


def ours(hub: HubServer, token: str, home: Path, repo: str, to: str) -> Figures:
    """Convert and publish from an empty cache."""
    home.mkdir()
    environment = {**hub.environment(token, home), "CTXFORGE_CACHE": str(home / "cache")}
    words = ("-m", "ctxforge", "extend", repo, "--method", "yarn", "--to", "64k", "--push", to, "--yes")
    return timed(hub, environment, *words)


def row(name: str, figures: list[Figures], goal: str = "") -> str:
    wall, processor, moved = zip(*figures, strict=True)
    return (
        f"| {name} | {statistics.median(wall):.2f} | {min(wall):.2f} | {min(processor):.2f} | {max(moved):,} | {goal} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where files are for a while; the system's by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name, HubServer(Path(name) / "hub") as hub:
        base = Path(name)
        token = hub.account("me")
        big = source(base / "big", 8 * GB, dense=False)
        shards = [path for path in big if path.endswith(".safetensors")]
        made_up = {path: f"{number:064x}" for number, path in enumerate(shards, 1)}
        hub.add_repo("org/big", big, sha256=made_up)
        hub.add_repo("org/small", source(base / "small", asked.megabytes * 10**6, dense=True))
        huge: list[Figures] = []
        copied: list[Figures] = []
        uploaded: list[Figures] = []
        for run in range(asked.runs):
            huge.append(ours(hub, token, base / f"home-big-{run}", "org/big", f"big-{run}"))
            copied.append(ours(hub, token, base / f"home-{run}", "org/small", f"ours-{run}"))
            folder = base / f"folder-{run}"
            home = base / f"home-peer-{run}"
            home.mkdir()
            environment = hub.environment(token, home)
            subprocess.run([sys.executable, "-c", DOWNLOAD, f"me/ours-{run}", folder], env=environment, check=True)
            uploaded.append(timed(hub, environment, "-c", UPLOAD, str(folder), f"me/theirs-{run}"))
            trees = [
                {path: (one.oid, one.sha256, one.size) for path, one in hub.repo(f"me/{whose}-{run}").files().items()}
                for whose in ("ours", "theirs")
            ]
            if trees[0] != trees[1]:
                sys.exit(f"the repositories differ: {sorted(set(trees[0].items()) ^ set(trees[1].items()))}")
            files = hub.repo(f"me/big-{run}").files()
            assert {path: files[path].sha256 for path in shards} == made_up
    size = f"{asked.megabytes} MB"
    print("| what | median s | min s | min processor s | bytes moved | goal |")
    print("|---|---|---|---|---|---|")
    print(row("ctxforge extend --push, 8 GB", huge, "<= 1,000,000 bytes, <= 3 s"))
    print(row(f"ctxforge extend --push, {size}", copied))
    print(row(f"upload_folder of the same folder, {size}", uploaded))
    ratio = statistics.median(theirs[0] / mine[0] for mine, theirs in zip(copied, uploaded, strict=True))
    more = uploaded[0][2] / copied[0][2]
    print(f"\nsame trees in all {asked.runs} runs; at {size} upload_folder takes {ratio:.2f} x the time")
    print(f"and moves {more:,.0f} x the bytes")


if __name__ == "__main__":
    main()
