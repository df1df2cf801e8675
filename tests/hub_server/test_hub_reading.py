"""Listings, ranges and headers as huggingface_hub and transformers read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer
from tests.llama_folder import safetensors_bytes


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_a_tree_in_pages(hub: HubServer, api: Callable[..., Any]) -> None:
    """The server's pages hold three entries here: every listing follows Link headers."""
    files = {f"folder/{number}.txt": b"x" * number for number in range(1, 8)} | {"top.bin": b"\0" * 10}
    hub.add_repo("org/model", files)
    hub.push("org/model", {"folder/7.txt": b"changed"}, message="Later")
    me = api("me")
    found = {entry.path: entry for entry in me.list_repo_tree("org/model", recursive=True, expand=True)}
    assert sorted(found) == sorted([*files, "folder"])
    assert len([request for request in hub.requests if "/tree/" in request.path]) == 3
    assert found["folder/3.txt"].blob_id == git_blob(b"xxx")
    assert (found["top.bin"].lfs.size, found["top.bin"].lfs.sha256) == (10, hashlib.sha256(b"\0" * 10).hexdigest())
    assert found["folder/7.txt"].last_commit.title == found["folder"].last_commit.title == "Later"
    assert found["top.bin"].last_commit.title == "initial commit"
    assert sorted(entry.path for entry in me.list_repo_tree("org/model")) == ["folder", "top.bin"]
    assert len(list(me.list_repo_tree("org/model", "folder"))) == 7
    (folder, top) = me.get_paths_info("org/model", ["folder", "top.bin", "missing"])
    assert (folder.tree_id, top.size) == (found["folder"].tree_id, 10)


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        (None, 200, (0, 1000)),
        ("bytes=0-99", 206, (0, 100)),
        ("bytes=990-", 206, (990, 1000)),
        ("bytes=990-5000", 206, (990, 1000)),
        ("bytes=-10", 206, (990, 1000)),
        ("bytes=1000-", 416, (0, 0)),
    ],
)
def test_ranges(hub: HubServer, asked: str | None, status: int, expected: tuple[int, int]) -> None:
    content = bytes(range(250)) * 4
    sha = hub.add_repo("org/model", {"model.safetensors": content})
    headers = {"Range": asked} if asked else {}
    got = get_session().get(f"{hub.url}/org/model/resolve/main/model.safetensors", headers=headers)
    assert got.status_code == status
    start, stop = expected
    if status == 416:
        assert got.headers["Content-Range"] == "bytes */1000"
        return
    assert got.content == content[start:stop]
    assert hub.sent == stop - start
    digest = f'"{hashlib.sha256(content).hexdigest()}"'
    assert (got.headers["ETag"], got.headers["X-Linked-Etag"], got.headers["X-Linked-Size"]) == (digest, digest, "1000")
    assert got.headers["X-Repo-Commit"] == sha
    assert got.headers.get("Content-Range") == (f"bytes {start}-{stop - 1}/1000" if status == 206 else None)


def test_a_sparse_file_is_read_only_where_it_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(8 << 30)
        file.seek(5 << 30)
        file.write(b"here")
    hub.add_repo("org/model", {"a.safetensors": tmp_path / "big"}, sha256={"a.safetensors": "cd" * 32})
    url = f"{hub.url}/org/model/resolve/main/a.safetensors"
    assert get_session().head(url).headers["Content-Length"] == str(8 << 30)
    assert get_session().get(url, headers={"Range": f"bytes={5 << 30}-{(5 << 30) + 3}"}).content == b"here"
    assert hub.sent == 4
    assert sum(path.stat().st_blocks * 512 for path in (hub.folder / "objects").iterdir()) < 1 << 20


def test_what_model_info_says(hub: HubServer, api: Callable[..., Any]) -> None:
    keys = "license: llama3", "library_name: transformers", "tags: [a]", "base_model: org/base", "pipeline_tag: x"
    card = "\n".join(["---", *keys, "---", ""]).encode()
    files = {"README.md": card, "config.json": b'{"model_type": "llama", "x": 1}', "w.safetensors": b"\0w"}
    first = hub.add_repo("org/model", files, private=True, gated="auto")
    hub.push("org/model", {"w.safetensors": b"\0changed"})
    me = api("me", orgs=["org"])
    info = me.model_info("org/model")
    assert (info.sha, info.private, info.gated, info.disabled) == (hub.repo("org/model").head(), True, "auto", False)
    assert (info.card_data.license, info.card_data.base_model) == ("llama3", "org/base")
    assert {"a", "license:llama3", "transformers", "base_model:org/base", "region:us"} <= set(info.tags)
    assert (info.library_name, info.pipeline_tag, info.config) == (
        "transformers",
        "x",
        {"model_type": "llama"},
    )
    assert [file.size for file in info.siblings] == [None] * 3
    old = me.model_info("org/model", revision=first, files_metadata=True)
    assert {file.rfilename: file.size for file in old.siblings}["w.safetensors"] == 2
    assert me.model_info("org/model", expand=["gated"]).sha is None


def test_every_header_of_a_sharded_model_in_one_request(hub: HubServer, api: Callable[..., Any]) -> None:
    shard = safetensors_bytes({"a": (2, 2)}), safetensors_bytes({"b": (4,)})
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    files = {"1.safetensors": shard[0], "2.safetensors": shard[1]}
    hub.add_repo("org/model", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    me = api("me")
    one = me.get_sharded_safetensors_metadata("org/model")
    many = me.get_safetensors_metadata("org/model")
    assert {name: file.tensors for name, file in one.files_metadata.items()} == {
        name: file.tensors for name, file in many.files_metadata.items()
    }


def test_transformers_publishes_and_loads_a_model(hub: HubServer, tmp_path: Path) -> None:
    """In this process, pointed at the server: what it loads back is what it pushed."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.tiny_models import tiny_config

    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    with hub.inside(hub.account("me"), tmp_path / "home"):
        model.push_to_hub("me/tiny", private=True)
        loaded = AutoModelForCausalLM.from_pretrained("me/tiny")
    assert hub.repo("me/tiny").files()["model.safetensors"].lfs
    assert hub.repo("me/tiny").private
    pairs = list(zip(model.parameters(), loaded.parameters(), strict=True))
    assert pairs
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
