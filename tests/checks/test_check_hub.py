"""`ctxforge check REPO@REV` against a Hub on loopback: headers and listed hashes alone, bytes counted on the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ctxforge
from tests.checkpoint.builders import raw_shard
from tests.hub_server import HubServer
from tests.llama_folder import CONFIG

Run = Callable[..., Any]
NAME = "me/bundled-yarn"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model at 4x, with the hash of its weights recorded, and a folded one."""
    root = tmp_path_factory.mktemp("converted")
    ctxforge.extend("bundled", method="yarn", to="4x", out=root / "yarn", checksum=True)
    ctxforge.extend("bundled", method="ntk-by-parts", to="4x", out=root / "folded")
    return root


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server, server.inside(server.account("me"), tmp_path / "home"):
        yield server


def files(folder: Path) -> dict[str, bytes | Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def verdicts(done: Any) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in done.document["checkpoints"][0]["checks"]}


def test_a_sound_repository_passes_without_its_weights(cli: Run, hub: HubServer, converted: Path) -> None:
    sha = hub.add_repo(NAME, files(converted / "yarn"))
    hub.reset()
    done = cli("check", f"{NAME}@main", "--json")
    assert done.code == 0, done.out
    report = done.document["checkpoints"][0]
    assert (report["path"], report["revision"]) == (f"{NAME}@main", sha)
    assert set(verdicts(done).values()) == {"pass"}
    assert {check["name"]: check["detail"] for check in report["checks"]}["provenance"] == "as recorded"
    weights = (converted / "yarn" / "model.safetensors").stat().st_size
    small = sum(path.stat().st_size for path in (converted / "yarn").iterdir() if path.suffix == ".json")
    assert hub.received == 0
    assert hub.sent < small + 150_000 < weights / 20
    assert all(request.range for request in hub.requests if request.path.endswith(".safetensors") and request.sent)


def test_weights_that_changed_after_the_conversion_are_found_by_their_listed_hash(
    cli: Run, hub: HubServer, converted: Path
) -> None:
    data = bytearray((converted / "yarn" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    hub.add_repo(NAME, files(converted / "yarn") | {"model.safetensors": bytes(data)})
    hub.reset()
    done = cli("check", NAME, "--json")
    assert done.code == 1
    assert {name for name, verdict in verdicts(done).items() if verdict == "fail"} == {"provenance"}
    assert "model.safetensors changed since the conversion" in done.out
    assert hub.sent < len(data) / 20


def test_a_changed_config_is_placed_by_its_address(cli: Run, hub: HubServer, converted: Path, tmp_path: Path) -> None:
    folder = converted / "yarn"
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    sha = hub.add_repo(NAME, files(folder) | {"config.json": json.dumps(config, indent=2).encode()})
    done = cli("check", NAME, "--json", "--sarif", tmp_path / "check.sarif")
    assert done.code == 1
    found = {name for name, verdict in verdicts(done).items() if verdict == "fail"}
    assert found == {"max-positions", "tokenizer", "provenance"}
    results = json.loads((tmp_path / "check.sarif").read_text())["runs"][0]["results"]
    places = {result["ruleId"]: result["locations"][0]["physicalLocation"] for result in results}
    assert places["max-positions"]["artifactLocation"]["uri"] == f"{hub.url}/{NAME}/blob/{sha}/config.json"
    lines = json.dumps(config, indent=2).splitlines()
    line = 1 + next(number for number, text in enumerate(lines) if text.startswith('  "max_position_embeddings"'))
    assert places["max-positions"]["region"]["startLine"] == line


def test_edited_tensors_are_said_not_to_be_read(cli: Run, hub: HubServer, converted: Path) -> None:
    hub.add_repo(NAME, files(converted / "folded"))
    done = cli("check", NAME)
    assert done.code == 0
    assert "provenance: as recorded (5 edited tensors not read)" in done.out


def test_sixteen_gigabytes_in_forty_shards(cli: Run, hub: HubServer, tmp_path: Path) -> None:
    """Sparse files whose bytes the server never reads; only headers travel."""
    mapping, repo = {}, {}
    shape, size = [8192, 24576], 8192 * 24576 * 2
    for number in range(1, 41):
        tensor, name = f"model.layers.{number}.w.weight", f"model-{number:05d}-of-00040.safetensors"
        header = {tensor: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}
        path = tmp_path / name
        path.write_bytes(raw_shard(json.dumps(header).encode(), b""))
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + size)
        mapping[tensor], repo[name] = name, path
    index = {"metadata": {"total_size": 40 * size}, "weight_map": mapping}
    small = {"config.json": CONFIG, "model.safetensors.index.json": index}
    contents = {name: json.dumps(value).encode() for name, value in small.items()}
    hub.add_repo(NAME, {**repo, **contents}, sha256={name: f"{i:064x}" for i, name in enumerate(repo)})
    hub.reset()
    done = cli("check", NAME, "--json")
    assert done.code == 0, done.out + done.err
    assert hub.sent < 1_000_000
    # Negative control: the same with an index that promises one tensor more is refused, as cheaply.
    index["weight_map"]["model.layers.41.w.weight"] = "model-00001-of-00040.safetensors"
    hub.push(NAME, {"model.safetensors.index.json": json.dumps(index).encode()})
    hub.reset()
    assert cli("check", NAME).code == 2
    assert hub.sent < 1_000_000


def test_what_cannot_be_reached_does_not_hide_the_rest(cli: Run, hub: HubServer, converted: Path) -> None:
    hub.add_repo(NAME, files(converted / "yarn"))
    done = cli("check", "me/absent", NAME, "--json", "--exit-zero")
    assert done.code == 4
    assert [one["passed"] for one in done.document["checkpoints"]] == [False, True]
    assert done.document["checkpoints"][0]["checks"][0]["name"] == "readable"
