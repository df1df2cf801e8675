"""`ctxforge diff`: exit codes, tables and documents; and with a side on a Hub on loopback, bytes counted there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ctxforge
from ctxforge.sources import bundled_model
from tests.checkpoint import builders
from tests.hub_server import HubServer

Run = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server, server.inside(server.account("me"), tmp_path / "home"):
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return builders.build(tmp_path / "source", shards=3, hidden=192)


def files(folder: Path) -> dict[str, bytes | Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def flipped(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    return bytes(data)


def moved(hub: HubServer, shard: str) -> int:
    return sum(request.sent for request in hub.requests if request.path.endswith(shard))


class TestCommand:
    def test_exit_codes(self, cli: Run, source: Path, tmp_path: Path) -> None:
        twin = shutil.copytree(source, tmp_path / "twin")
        assert cli("diff", source, twin, "--exit-code").code == 0
        (twin / "LICENSE").write_text("MIT")
        assert cli("diff", source, twin).code == 0
        assert cli("diff", source, twin, "--exit-code").code == 1
        assert cli("diff", source, tmp_path / "no:where", "--exit-code").code == 2
        gguf = tmp_path / "m.gguf"
        gguf.write_bytes(b"GGUF")
        assert cli("diff", source, gguf).code in (2, 3)

    def test_tables_of_a_conversion(self, cli: Run, tmp_path: Path) -> None:
        out = ctxforge.extend("bundled", method="ntk-by-parts", to="4x", out=tmp_path / "out").out
        shown = cli("diff", "bundled", out).out
        for words in (
            "max_position_embeddings            512         2048",
            "28 of 32 pairs turn at another speed; the largest divisor change is x 4, of pair 16",
            "works at 512 -> 2048 tokens",
            "the weights carry a factor on q.k of 1 -> 0.771321",
            "so q.k is scaled by 1 -> 1 in all",
            "42 of 47 are equal",
            "model.layers.*.self_attn.q_proj.weight   bytes    5 of 5",
        ):
            assert " ".join(words.split()) in " ".join(shown.split()), words
        assert shown.rstrip().splitlines()[-1].startswith("different: 7 values of config.json, 1 values of tokenizer")
        full = cli("diff", "bundled", out, "--full").out
        assert sum("self_attn.q_proj.weight" in line for line in full.splitlines()) == 5

    def test_the_document(self, cli: Run, source: Path, tmp_path: Path) -> None:
        twin = shutil.copytree(source, tmp_path / "twin")
        name = "model-00002-of-00003.safetensors"
        (twin / name).write_bytes(flipped(source / name))
        found = cli("diff", source, twin, "--json").document
        assert (found["status"], found["differ"], found["complete"]) == ("different", True, True)
        (tensor,) = found["tensors"]
        assert tensor["name"] == "model.layers.3.input_layernorm.weight"
        assert tensor["before"] == {"dtype": "BF16", "shape": [192], "bytes": 384, "file": name}
        assert tensor["amounts"]["changed"] == 1
        assert tensor["amounts"]["share"] == 1 / 192
        assert cli("diff", source, source, "--json").document["status"] == "same"

    def test_many_changed_keys_are_cut_and_lists_summed_up(self, cli: Run, source: Path, tmp_path: Path) -> None:
        twin = shutil.copytree(source, tmp_path / "twin")
        (source / "extra.json").write_text(json.dumps({"list": [1.0] * 64, **{f"k{i}": 0 for i in range(30)}}))
        (twin / "extra.json").write_text(json.dumps({"list": [2.0] * 64, **{f"k{i}": 1 for i in range(30)}}))
        shown = cli("diff", source, twin).out
        assert "list: 64 elements" in shown
        assert "and 11 more (--full)" in shown
        assert "list[63]" in cli("diff", source, twin, "--full").out
        assert "94 values of extra.json" in shown

    def test_hostile_texts(self, cli: Run, source: Path, tmp_path: Path) -> None:
        """Markup, control characters, half a character, nesting without end, and a key twice."""
        twin = shutil.copytree(source, tmp_path / "twin")
        for root, mark in ((source, "a"), (twin, "b")):
            (root / "chat.json").write_text(json.dumps({"t": f"[INST] {mark} [/INST] [bold]\x1b[31m", "[/x]": mark}))
            (root / "half.json").write_text('{"x": "\\ud800' + mark + '"}')
            (root / "deep.json").write_text('{"x":' * 900 + f'"{mark}"' + "}" * 900)
            (root / "deeper.json").write_text("[" * 100_000 + mark)
            (root / "twice.json").write_text(f'{{"x": 1, "x": "{mark}"}}')
        done = cli("diff", source, twin)
        assert done.code == 0, done.err
        assert '"[INST] a [/INST] [bold]\\u001b[31m"' in done.out
        assert "\x1b" not in done.out
        document = cli("diff", source, twin, "--json").document
        assert {one["file"] for one in document["files"]} >= {"half.json", "deeper.json", "twice.json"}
        assert document["json"][0]["file"] == "chat.json"
        assert cli("check", twin).code in (0, 1)

    def test_imports_neither_torch_nor_numpy_where_nothing_differs(self) -> None:
        import subprocess
        import sys

        code = (
            "import sys; from ctxforge.differences import differences\n"
            "found = differences('bundled', 'bundled'); assert not found.differ\n"
            "heavy = {'torch', 'numpy', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
            "sys.exit(','.join(sorted(heavy)) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestHub:
    def test_a_folder_against_its_own_repository(self, cli: Run, hub: HubServer, source: Path) -> None:
        hub.add_repo("me/one", files(source))
        hub.reset()
        done = cli("diff", source, "me/one@main", "--exit-code", "--json")
        assert done.code == 0, done.out
        assert done.document["status"] == "same"
        weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        assert done.document["bytes"] == {
            "read": 0,
            "skipped": weights
            - sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in source.glob("*.safetensors")),
        }
        assert max(moved(hub, path.name) for path in source.glob("*.safetensors")) <= 100_000

    def test_other_weights_on_the_hub_are_not_moved_unless_asked(self, cli: Run, hub: HubServer, source: Path) -> None:
        name = "model-00003-of-00003.safetensors"
        hub.add_repo("me/one", files(source))
        hub.add_repo("me/two", files(source) | {name: flipped(source / name)})
        for one in ("me/one", source):
            done = cli("diff", one, "me/two", "--exit-code", "--json")
            assert done.code == 3
            assert (done.document["status"], done.document["differ"]) == ("unknown", False)
            assert {tensor["kind"] for tensor in done.document["tensors"]} == {"not compared"}
            assert {tensor["after"]["file"] for tensor in done.document["tensors"]} == {name}
        hub.reset()
        done = cli("diff", "me/one", "me/two", "--exit-code", "--json", "--bytes")
        assert done.code == 1
        assert [tensor["name"] for tensor in done.document["tensors"]] == ["model.layers.5.input_layernorm.weight"]
        sizes = {path.name: path.stat().st_size for path in source.glob("*.safetensors")}
        assert moved(hub, name) >= 2 * sizes.pop(name)
        assert all(moved(hub, other) < size for other, size in sizes.items())

    def test_two_commits_of_one_repository(self, cli: Run, hub: HubServer, tmp_path: Path) -> None:
        out = ctxforge.extend(bundled_model(), method="yarn", to="4x", out=tmp_path / "out").out
        first = hub.add_repo("me/model", files(bundled_model()))
        changed = {name: out / name for name in ("config.json", "tokenizer_config.json", "ctxforge.json")}
        hub.push("me/model", changed)
        hub.reset()
        done = cli("diff", f"me/model@{first}", "me/model", "--exit-code", "--json")
        assert done.code == 1
        found = done.document
        assert found["complete"]
        assert [one["file"] for one in found["json"]] == ["config.json", "tokenizer_config.json"]
        assert [(one["file"], one["kind"]) for one in found["files"]] == [("ctxforge.json", "added")]
        assert found["rotary"][0]["after"] == "yarn factor 4 from 512, base 10000"
        assert hub.sent < (bundled_model() / "model.safetensors").stat().st_size / 10

    def test_files_that_are_kept_in_git(self, cli: Run, hub: HubServer, source: Path) -> None:
        (source / "extra").mkdir()
        (source / "extra" / "more.json").write_text('{"a": 1}')
        hub.add_repo("me/one", files(source))
        for name, text in (("extra/more.json", '{"a": 2}'), ("LICENSE", "MIT-or-so!")):
            (source / name).unlink()  # the server links to the file itself
            (source / name).write_text(text)
        found = cli("diff", source, "me/one", "--json").document
        assert [(one["file"], one["changes"]) for one in found["json"]] == [
            ("extra/more.json", [{"path": ["a"], "kind": "changed", "before": 2, "after": 1}])
        ]
        assert [(one["file"], one["kind"]) for one in found["files"]] == [("LICENSE", "changed")]
        assert found["tensors"] == []
