"""Reading from a Hub on loopback: only small files and headers travel until the weights are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.builders import add_clutter, build, tree
from tests.checkpoint.loopback_hub import SHA, LoopbackHub

# huggingface_hub reads its environment when it is imported, so every reading happens in a process of its own.
CHILD = """
import json, sys
from pathlib import Path
from ctxforge.checkpoint import Edits, estimate_write, fetch, read_checkpoint, write_checkpoint
from ctxforge.errors import CtxforgeError

def summary(checkpoint):
    return {
        "root": checkpoint.root and str(checkpoint.root), "revision": checkpoint.revision, "shards": checkpoint.shards,
        "source": checkpoint.source, "weights": checkpoint.weights, "parameters": checkpoint.parameters,
        "tensors": {n: [t.file, t.start, t.end, t.shape, t.dtype] for n, t in checkpoint.tensors.items()},
        "files": checkpoint.file_sizes, "json": sorted(checkpoint.json_files), "text": checkpoint.config_text,
    }

answers = []
for source, revision, out in json.loads(sys.argv[1]):
    try:
        checkpoint = read_checkpoint(source, revision=revision)
        answer = summary(checkpoint)
        if out:
            estimate = estimate_write(checkpoint, Edits({}), Path(out))
            answer["download"] = estimate.bytes_to_download
            local = fetch(checkpoint)
            answer["fetched"] = summary(local)
            answer["download again"] = estimate_write(checkpoint, Edits({}), Path(out)).bytes_to_download
            write_checkpoint(local, Edits({}), Path(out))
    except CtxforgeError as error:
        answer = {"kind": type(error).__name__, "cause": error.cause, "remedy": error.remedy}
    answers.append(answer)
sys.stdout.write(json.dumps(answers))
"""


class Reader:
    """Reads sources in a child process, against one hub and one cache."""

    def __init__(self, hub: LoopbackHub, home: Path) -> None:
        self.hub, self.home = hub, home

    def __call__(self, *sources: str | tuple[str, str | None, str | None], **environment: str) -> list[Any]:
        requests = [source if isinstance(source, tuple) else (source, None, None) for source in sources]
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        }
        command = [sys.executable, "-c", CHILD, json.dumps(requests)]
        done = subprocess.run(command, env=env, cwd=self.home, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    root = build(tmp_path / "model", hidden=512)  # 4 MB a shard
    add_clutter(root)
    return root


@pytest.fixture
def reader(tmp_path: Path, model: Path) -> Iterator[Reader]:
    hub = LoopbackHub({"org/name": model})
    (tmp_path / "home").mkdir()
    with hub.running():
        yield Reader(hub, tmp_path / "home")


def weights(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("model-*.safetensors"))


def test_headers_only_until_the_weights_are_fetched(tmp_path: Path, model: Path, reader: Reader) -> None:
    from ctxforge.checkpoint import read_checkpoint

    local = read_checkpoint(model)
    (answer,) = reader("org/name")
    assert (answer["root"], answer["revision"], answer["source"]) == (None, SHA, "org/name")
    assert answer["text"] == local.config_text
    assert answer["files"] == local.file_sizes
    assert answer["tensors"] == {
        name: [info.file, info.start, info.end, list(info.shape), info.dtype] for name, info in local.tensors.items()
    }
    assert answer["json"] == ["generation_config.json", "tokenizer_config.json"]
    assert sum(reader.hub.served.values()) < weights(model) / 20
    assert not {"tokenizer.json", "pytorch_model.bin"} & set(reader.hub.served)

    out = tmp_path / "out"
    (answer,) = reader(("org/name@main", None, str(out)))
    assert answer["download again"] == 0
    assert weights(model) < answer["download"] <= sum(local.file_sizes.values())
    assert answer["fetched"]["root"].endswith(f"snapshots/{SHA}")
    assert answer["fetched"]["revision"] == SHA
    assert answer["fetched"]["tensors"] == answer["tensors"]
    assert "pytorch_model.bin" not in reader.hub.served
    assert tree(out) == {name: (model / name).read_bytes() for name in local.file_sizes}

    (offline,) = reader("org/name", HF_HUB_OFFLINE="1")
    assert offline["tensors"] == answer["tensors"]
    assert offline["revision"] == SHA


def test_long_headers_and_servers_without_ranges(model: Path, reader: Reader) -> None:
    first = model / "model-00001-of-00002.safetensors"
    data = first.read_bytes()
    length = int.from_bytes(data[:8], "little")
    padded = data[8 : 8 + length] + b" " * 300_000
    first.write_bytes(len(padded).to_bytes(8, "little") + padded + data[8 + length :])
    (ranged,) = reader("org/name")
    assert ranged["tensors"]["model.layers.0.self_attn.q_proj.weight"][1] == 8 + len(padded)
    assert reader.hub.served[first.name] < 500_000
    reader.hub.ignore_ranges = True
    (whole,) = reader("org/name")
    assert whole["tensors"] == ranged["tensors"]


def test_damage_is_seen_without_download(model: Path, reader: Reader) -> None:
    first = model / "model-00001-of-00002.safetensors"
    os.truncate(first, first.stat().st_size - 2)
    (answer,) = reader("org/name")
    assert answer["kind"] == "CheckpointError"
    assert "ends at byte" in answer["cause"]
    (model / "model-00002-of-00002.safetensors").unlink()
    (answer,) = reader("org/name")
    assert "is missing" in answer["cause"]


def test_what_the_hub_refuses(tmp_path: Path, model: Path, reader: Reader) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "a.Q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_bytes(b"{}")
    hub = reader.hub
    hub.models |= {"org/gated": model, "org/down": model, "org/gguf": tmp_path / "gguf", "org/meta": tmp_path / "meta"}
    hub.gated.add("org/gated")
    hub.failing.add("org/down")
    expected = {
        "org/none": ("HubError", "no model org/none on the Hub", "HF_TOKEN"),
        "org/gated": ("HubError", "org/gated is gated", "Accept its terms"),
        "org/name@nope": ("HubError", 'no revision "nope"', "Check the branch"),
        "org/down": ("HubError", "answered 503", "Try again later"),
        "org/gguf": ("UnsupportedError", "GGUF files only", "hf download"),
        "org/meta": ("CheckpointError", "original Meta layout", "-hf"),
        "org/na--me": ("UsageError", "not a valid Hub id", "org/name"),
    }
    for (source, (kind, cause, remedy)), answer in zip(expected.items(), reader(*expected), strict=True):
        assert answer["kind"] == kind, (source, answer)
        assert cause in answer["cause"]
        assert remedy in answer["remedy"]
    answer = reader(("org/name@main", "other", None))[0]
    assert answer["kind"] == "UsageError"


def test_no_network(reader: Reader) -> None:
    (offline,) = reader("org/name", HF_HUB_OFFLINE="1")
    assert offline["kind"] == "HubError"
    assert "not in the cache" in offline["cause"]
    assert "HF_HUB_OFFLINE" in offline["remedy"]
    (unreachable,) = reader("org/name", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable["kind"] == "HubError"
    assert "cannot be reached" in unreachable["cause"]
    assert "HF_HUB_OFFLINE=1" in unreachable["remedy"]
    reader("org/name")
    (partly,) = reader("org/name", HF_HUB_OFFLINE="1")
    assert partly["kind"] == "HubError"
    assert "only partly in the cache" in partly["cause"]
    (pinned,) = reader(f"org/name@{SHA}", HF_ENDPOINT="http://127.0.0.1:9")
    assert "only partly in the cache" in pinned["cause"]
