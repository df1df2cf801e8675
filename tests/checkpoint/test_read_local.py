"""Reading a folder: what belongs to the checkpoint, what stays behind, and every broken folder that is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ctxforge.checkpoint import read_checkpoint, verify_integrity
from ctxforge.errors import CheckpointError, CtxforgeError, ExitCode, ResourceError, UsageError
from tests.checkpoint.builders import CONFIG, add_clutter, build, raw_shard, shard_bytes, spec

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def test_reads_a_sharded_folder(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    checkpoint = read_checkpoint(root)
    assert checkpoint.root == root
    assert (checkpoint.weights, checkpoint.revision, checkpoint.shards) == ("safetensors", None, (FIRST, SECOND))
    assert list(checkpoint.config) == list(CONFIG)
    assert checkpoint.config_text == (root / "config.json").read_text()
    assert set(checkpoint.json_files) == {"tokenizer_config.json", "generation_config.json"}
    assert checkpoint.json_files["tokenizer_config.json"]["model_max_length"] == 1000000000000000019884624838656
    assert checkpoint.parameters == 4 * (4 * 64 + 8)
    assert checkpoint.weight_bytes == 2 * checkpoint.parameters
    assert checkpoint.dtypes == {"BF16": 20}
    info = checkpoint.tensors["model.layers.2.self_attn.q_proj.weight"]
    assert info.file == SECOND
    data = (root / SECOND).read_bytes()[info.start : info.end]
    assert data == spec(2, {"x": ("BF16", (8, 8))})["x"][2]
    assert {"templates/chat.jinja", "LICENSE", "tokenizer.json", INDEX, FIRST} <= set(checkpoint.file_sizes)
    assert verify_integrity(root) == []


def test_other_weight_formats_stay_behind(tmp_path: Path) -> None:
    root = build(tmp_path / "src", shards=1)
    plain = read_checkpoint(root)
    add_clutter(root)
    (root / "model.fp16.safetensors").write_bytes(b"a variant")
    (root / "adapter_model.safetensors").write_bytes(b"an adapter")
    checkpoint = read_checkpoint(root)
    assert checkpoint.weights == "safetensors"
    assert set(checkpoint.file_sizes) - set(plain.file_sizes) == {"adapter_model.safetensors"}
    assert {"pytorch_model.bin", "m.gguf", "consolidated.00.pth"} <= {info.name for info in checkpoint.ignored}


def test_a_missing_tokenizer_is_fine(tmp_path: Path) -> None:
    root = build(tmp_path / "src", shards=1)
    for name in ("tokenizer_config.json", "tokenizer.json", "generation_config.json"):
        (root / name).unlink()
    assert read_checkpoint(root).json_files == {}


def test_an_index_over_one_file_named_model(tmp_path: Path) -> None:
    root = build(tmp_path / "src", shards=1)
    names = list(read_checkpoint(root).tensors)
    (root / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert read_checkpoint(root).shards == ("model.safetensors",)


def test_a_snapshot_of_the_hub_cache(tmp_path: Path) -> None:
    plain = build(tmp_path / "plain")
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(p for p in plain.rglob("*") if p.is_file())):
        name = path.relative_to(plain)
        shutil.copy(path, repo / "blobs" / f"{number:064x}")
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(repo / "blobs" / f"{number:064x}", (snapshot / name).parent))
    assert read_checkpoint(snapshot).tensors == read_checkpoint(plain).tensors
    (snapshot / "leak").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        read_checkpoint(snapshot)


def edit_json(root: Path, name: str, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    value = json.loads((root / name).read_text())
    change(value)
    (root / name).write_text(json.dumps(value))


def drop(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def put(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(data if isinstance(data, bytes) else data.encode()) and None


def only(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        shutil.rmtree(root)
        root.mkdir()
        for name in names:
            (root / name).write_bytes(b"{}")

    return change


def truncate(name: str, by: int) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size - by)


def point(target: str) -> Callable[[Path], None]:
    """Let the index place a tensor in `target`."""
    return lambda root: edit_json(
        root, INDEX, lambda index: index["weight_map"].update({"model.layers.0.self_attn.q_proj.weight": target})
    )


def link(name: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)

    return change


def outside(root: Path) -> None:
    shutil.move(root / FIRST, root.parent / "stray.safetensors")
    (root / FIRST).symlink_to(root.parent / "stray.safetensors")


def fifo(root: Path) -> None:
    (root / "config.json").unlink()
    os.mkfifo(root / "config.json")


def same_tensor_twice(root: Path) -> None:
    shutil.copy(root / FIRST, root / SECOND)
    edit_json(root, INDEX, lambda index: index["weight_map"].update(extra=SECOND))


OVERLAP = raw_shard(
    json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("first", "second")}).encode(),
    bytes(8),
)
HUGE_HEADER = (99_000_000).to_bytes(8, "little") + b"{}"

BAD = {
    "no config": (drop("config.json"), "has no config.json", "-hf"),
    "empty folder": (only(), "has no config.json", "-hf"),
    "original Meta layout": (only("params.json", "consolidated.00.pth"), "original Meta layout", "-hf"),
    "adapter alone": (only("adapter_config.json", "adapter_model.safetensors"), "adapter", "Merge"),
    "adapter with config": (only("config.json", "adapter_model.safetensors"), "adapter", "Merge"),
    "no weights": (only("config.json"), "no weights", "model.safetensors"),
    "several GGUF": (only("a.gguf", "b.gguf"), "2 GGUF files", "a.gguf"),
    "config not JSON": (put("config.json", "{'a': 1}"), "config.json is not valid JSON", "Restore"),
    "config empty": (put("config.json", ""), "not valid JSON", "Restore"),
    "config an array": (put("config.json", "[1]"), "holds an array", "Restore"),
    "config a string": (put("config.json", '"x"'), "holds a string", "Restore"),
    "config null": (put("config.json", "null"), "holds null", "Restore"),
    "config binary": (put("config.json", b"\xff\xfe{}"), "not UTF-8", "Restore"),
    "config with half a surrogate": (put("config.json", '{"a": "\\ud800"}'), "not UTF-8", "Restore"),
    "config NaN": (put("config.json", '{"rope": {"theta": NaN}}'), 'value nan under "rope.theta"', "right number"),
    "config Infinity": (put("config.json", '{"a": [-Infinity]}'), 'value -inf under "a"', "right number"),
    "config overflow": (put("config.json", '{"a": 1e999}'), "not a finite number", "right number"),
    "config huge integer": (put("config.json", '{"a": 9223372036854775808}'), 'beyond 64 bits under "a"', "right"),
    "config endless integer": (put("config.json", '{"a": ' + "9" * 5000 + "}"), "thousands of digits", "Restore"),
    "config key twice": (put("config.json", '{"a": 1, "b": {"c": 1, "c": 2}}'), 'the key "c" twice', "Remove one"),
    "config too deep": (put("config.json", '{"a":' * 100_000), "nested too deeply", "Restore"),
    "config a pipe": (fifo, "neither a file nor a folder", "Remove"),
    "tokenizer config malformed": (put("tokenizer_config.json", "{"), "tokenizer_config.json is not valid", "Restore"),
    "missing shard": (drop(SECOND), f"shard {SECOND} named in {INDEX} is missing", "Download"),
    "missing index": (drop(INDEX), f"2 weight shards but no {INDEX}", "Download"),
    "extra shard": (put("model-00003-of-00003.safetensors", "x"), "index.json does not name it", "Remove it"),
    "two sets of weights": (put("model.safetensors", "x"), "two sets of weights", "Remove the one"),
    "truncated shard": (truncate(FIRST, 5), "ends at byte", "Download or copy"),
    "shard of a git-lfs pointer": (put(FIRST, "version https://git-lfs.github.com"), "not a safetensors file", "copy"),
    "empty shard": (put(FIRST, ""), "too short", "Download or copy"),
    "header longer than the file": (put(FIRST, HUGE_HEADER), "truncated: its header has 99000000", "Download"),
    "overlapping tensors": (put(FIRST, OVERLAP), "overlaps the tensor before it", "Download or copy"),
    "tensor in two shards": (same_tensor_twice, "is in model-00001", "Remove the file"),
    "tensor in another shard": (point(SECOND), f"index says that {SECOND} holds", "same revision"),
    "index absolute": (point("/etc/passwd.safetensors"), "not a plain path inside", "trust"),
    "index outside": (point("../stray.safetensors"), "not a plain path inside", "trust"),
    "index with backslash": (point("..\\stray.safetensors"), "not a plain path inside", "trust"),
    "index with a drive": (point("C:stray.safetensors"), "not a plain path inside", "trust"),
    "index with NUL": (point("a\0.safetensors"), "not a plain path inside", "trust"),
    "index names no weights": (point("config.json"), "not a .safetensors file", "Restore"),
    "index without map": (put(INDEX, "{}"), "no weight_map", "Restore"),
    "index map not an object": (put(INDEX, '{"weight_map": [1]}'), "no weight_map", "Restore"),
    "index map of numbers": (put(INDEX, '{"weight_map": {"a": 1}}'), "not a plain path", "trust"),
    "index key twice": (put(INDEX, '{"weight_map": {"a": "b", "a": "b"}}'), 'key "a" twice', "Remove one"),
    "shard links outside": (outside, "leads out of the checkpoint folder", "Replace the link"),
    "link loop": (link(FIRST, FIRST), "leads back to itself", "Remove or correct"),
    "folder link to parent": (link("loop", ".."), "leads out", "Replace"),
    "folder link to itself": (link("loop", "."), "link to a folder", "Replace"),
    "broken link": (link(SECOND, "nowhere"), f"{SECOND} does not exist", "download"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(tmp_path: Path, case: str) -> None:
    change, cause, remedy = BAD[case]
    root = build(tmp_path / "src")
    change(root)
    with pytest.raises(CtxforgeError) as caught:
        read_checkpoint(root)
    error = caught.value
    assert cause in error.cause
    assert remedy in error.remedy
    assert "\n" not in error.cause + error.remedy
    assert isinstance(error, (CheckpointError, UsageError))
    assert error.exit_code is ExitCode.USAGE
    problems = verify_integrity(root)
    assert problems
    assert all("\n" not in problem for problem in problems)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "a/b/c", "", "a b"):
        with pytest.raises(UsageError) as caught:
            read_checkpoint(source)
        assert caught.value.remedy
    root = build(tmp_path / "src")
    with pytest.raises(UsageError, match="is not a checkpoint folder"):
        read_checkpoint(root / "config.json")
    with pytest.raises(UsageError, match="has no revision"):
        read_checkpoint(root, revision="main")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="leads back to itself"):
        read_checkpoint(tmp_path / "loop")
    (tmp_path / "x.gguf").write_bytes(b"GGML....")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        read_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["config.json", FIRST])
def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = build(tmp_path / "src")
    real = os.open

    def refuse(path: str | Path, *args: int, **kwargs: int) -> int:
        if Path(path) == root / name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceError, match=f"{name} cannot be read: permission denied") as caught:
        read_checkpoint(root)
    assert caught.value.exit_code is ExitCode.RESOURCES


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    (root / "templates").chmod(0)
    with pytest.raises(ResourceError):
        read_checkpoint(root)


def test_an_oversized_config(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    with (root / "config.json").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(CheckpointError, match="more than the limit"):
        read_checkpoint(root)


def test_integrity_names_every_problem(tmp_path: Path) -> None:
    root = build(tmp_path / "src", shards=3)
    (root / "model-00002-of-00003.safetensors").unlink()
    (root / "model-00009-of-00009.safetensors").write_bytes(b"")
    truncate("model-00003-of-00003.safetensors", 1)(root)
    put("generation_config.json", "[]")(root)
    problems = "\n".join(verify_integrity(root))
    for part in (
        "generation_config.json holds an array",
        "00002-of-00003.safetensors named in",
        "00009",
        "ends at byte",
    ):
        assert part in problems
    assert problems.count("\n") == 3


def test_integrity_compares_index_and_headers(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    edit_json(root, INDEX, lambda index: index["metadata"].update(total_size=7))
    edit_json(root, INDEX, lambda index: index["weight_map"].pop("model.layers.0.self_attn.q_proj.weight"))
    edit_json(root, INDEX, lambda index: index["weight_map"].update(ghost=FIRST))
    problems = verify_integrity(root)
    assert len(problems) == 3
    assert f'{FIRST} lacks tensors that {INDEX} places there: "ghost".' in problems
    assert any("total_size" in problem for problem in problems)
    assert verify_integrity(tmp_path / "nowhere")
    (root / FIRST).write_bytes(shard_bytes(spec(0, {"a": ("F32", (1,))})))
    assert verify_integrity(root)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    root = build(tmp_path / "src")
    code = (
        "import sys, resource, ctxforge.checkpoint as c\n"
        f"c.write_checkpoint(c.read_checkpoint({str(root)!r}), c.Edits({{'config.json': b'{{}}'}}),"
        f" c.write.Path({str(tmp_path / 'out')!r}))\n"
        "heavy = {'torch', 'numpy', 'huggingface_hub', 'transformers', 'pydantic', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
    )
    # A child's peak begins at its parent's size at the fork, so a small process has to start the one that is measured.
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)",
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    peak = int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert peak < 60_000
