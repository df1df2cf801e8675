"""`ctxforge extend HUBID --push` from an empty cache: what is moved, what is published, and what loads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxforge import extend
from tests.hub_server import HubServer
from tests.publish.conftest import run_ctxforge
from tests.publish.sources import CARD, FIRST, LAST, MIDDLE, SHARDS, contents, sharded_bundled

CONVERSIONS = {
    "config-only": ("--method", "yarn", "--to", "4x"),
    "folded": ("--method", "pi", "--temperature", "1.2", "--to", "4x"),
    "attached": ("--method", "none", "--attach", "lm-infinite:window=256", "--to", "4x"),
}
LOADER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
answers = {}
ids = torch.arange(3, 203)[None] % 250
for name, place in json.loads(sys.argv[1]).items():
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    answers[name] = output.logits[0, -1].tolist()
json.dump(answers, sys.stdout)
"""


class Shelf:
    """One server with the source and what was published from it, by kind; `done` holds the finished commands."""

    def __init__(self, hub: HubServer, base: Path) -> None:
        self.hub, self.base = hub, base
        self.source = sharded_bundled(base / "source")
        self.token = hub.account("me")
        self.sha = hub.add_repo("org/source", contents(self.source))
        self.done: dict[str, Any] = {}
        self.moved: dict[str, int] = {}
        self.requests: dict[str, list[Any]] = {}

    def publish(self, kind: str, *more: str) -> Any:
        self.hub.reset()
        home = self.base / f"home-{kind}"
        words = ("extend", "org/source", *CONVERSIONS[kind], "--push", *more)
        self.done[kind] = run_ctxforge(self.hub, self.token, home, *words)
        self.moved[kind] = self.hub.received + self.hub.sent
        self.requests[kind] = self.hub.requests
        return self.done[kind]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    base = tmp_path_factory.mktemp("published")
    with HubServer(base / "hub") as hub:
        shelf = Shelf(hub, base)
        for kind in CONVERSIONS:
            done = shelf.publish(kind, f"published-{kind}")
            assert done.returncode == 0, done.stderr
        yield shelf


def weight_requests(requests: list[Any]) -> list[Any]:
    """Downloads of weights; reading a header is a request for a short range at the start."""
    return [
        one
        for one in requests
        if one.method == "GET" and one.path.endswith(".safetensors") and (one.range is None or one.sent > 200_000)
    ]


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_one_commit_and_its_address(shelf: Shelf, kind: str) -> None:
    repo = shelf.hub.repo(f"me/published-{kind}")
    newest, first = repo.commits()
    assert newest.parent == first.sha
    assert shelf.done[kind].stdout == f"{shelf.hub.url}/me/published-{kind}/commit/{newest.sha}\n"
    states = shelf.hub.states(f"me/published-{kind}")
    assert [set(state) - {".gitattributes"} for state in states] == [set(), set(newest.files) - {".gitattributes"}]
    assert newest.message.startswith("Extend org/source to 2k tokens: ")


@pytest.mark.parametrize("kind", ["config-only", "attached"])
def test_under_a_megabyte_moves_and_no_weights(shelf: Shelf, kind: str) -> None:
    size = sum((shelf.source / name).stat().st_size for name in SHARDS)
    assert size > 6_000_000
    assert shelf.moved[kind] < 1_000_000
    assert not weight_requests(shelf.requests[kind])
    assert not [one for one in shelf.requests[kind] if one.method == "PUT"]
    theirs, ours = shelf.hub.repo("org/source").files(), shelf.hub.repo(f"me/published-{kind}").files()
    assert {name: ours[name].sha256 for name in SHARDS} == {name: theirs[name].sha256 for name in SHARDS}
    home = shelf.base / f"home-{kind}"
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) < 200_000


def test_of_a_fold_only_the_edited_shards_move_once_each_way(shelf: Shelf) -> None:
    requests = shelf.requests["folded"]
    fetched = [one for one in weight_requests(requests) if one.sent > 200_000]
    assert sorted(one.path.rsplit("/", 1)[1] for one in fetched) == [MIDDLE, LAST]
    sent = [one for one in requests if one.method == "PUT"]
    edited = sum((shelf.source / name).stat().st_size for name in (MIDDLE, LAST))
    assert sum(one.received for one in sent) == edited
    assert shelf.moved["folded"] < 2 * edited + 1_000_000
    theirs, ours = shelf.hub.repo("org/source").files(), shelf.hub.repo("me/published-folded").files()
    assert ours[FIRST].sha256 == theirs[FIRST].sha256
    assert ours[MIDDLE].sha256 != theirs[MIDDLE].sha256
    # One shard after the other: nothing of them is left.
    assert not list((shelf.base / "home-folded").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_the_same_files_as_extend_writes(shelf: Shelf, kind: str, tmp_path: Path) -> None:
    repo = shelf.hub.repo(f"me/published-{kind}")
    words = dict(zip(CONVERSIONS[kind][::2], CONVERSIONS[kind][1::2], strict=True))
    done = extend(
        shelf.source,
        method=words["--method"],
        temperature=float(words["--temperature"]) if "--temperature" in words else None,
        attach=words.get("--attach"),
        to="4x",
        out=tmp_path / "out",
    )
    local = {name: data for name, data in contents(done.out).items() if name not in ("README.md", "ctxforge.json")}
    files = repo.files()
    for name, path in local.items():
        if name == ".gitattributes":
            assert b"source.line text" in repo.read(name)
            continue
        assert isinstance(path, Path)
        assert repo.read(name) == path.read_bytes(), name
    # Besides: the card with its figures, and the provenance.
    rest = set(files) - set(local)
    assert {"README.md", "ctxforge.json"} <= rest
    assert all(name.endswith((".svg", ".md", ".json")) for name in rest)

    record = json.loads(repo.read("ctxforge.json"))
    assert (record["source"]["name"], record["source"]["revision"]) == ("org/source", shelf.sha)
    hashes = {name: hashlib.sha256(repo.read(name)).hexdigest() for name in record["files"]}
    assert record["files"] == hashes
    assert set(SHARDS) <= set(hashes)
    local_record = json.loads((done.out / "ctxforge.json").read_text())
    assert record["plan"] == local_record["plan"]
    assert record["edited_tensors"] == local_record["edited_tensors"]
    assert bool(record["edited_tensors"]) == (kind == "folded")
    card = repo.read("README.md").decode()
    assert "license: mit" in card
    assert "base_model" in card
    assert "Its own words." in card
    assert CARD.decode() != card


def test_transformers_loads_what_was_published(shelf: Shelf, tmp_path: Path) -> None:
    """From that server, in a process that has never seen the source; the logits are those of a local conversion."""
    places = {}
    for kind, words in CONVERSIONS.items():
        chosen = dict(zip(words[::2], words[1::2], strict=True))
        extend(
            shelf.source,
            method=chosen["--method"],
            temperature=float(chosen["--temperature"]) if "--temperature" in chosen else None,
            attach=chosen.get("--attach"),
            to="4x",
            out=tmp_path / kind,
        )
        places |= {f"hub {kind}": f"me/published-{kind}", f"local {kind}": str(tmp_path / kind)}
    places["source"] = str(shelf.source)
    environment = {**shelf.hub.environment(shelf.token, tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, json.dumps(places)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for kind in CONVERSIONS:
        assert answers[f"hub {kind}"] == answers[f"local {kind}"]
    assert answers["hub folded"] != answers["source"]


def test_again_sends_nothing_and_commits_nothing(shelf: Shelf) -> None:
    """Also from another machine, where nothing is known but what the repository says."""
    before = shelf.hub.repo("me/published-folded").head()
    home = shelf.base / "another"
    shelf.hub.reset()
    words = ("extend", "org/source", *CONVERSIONS["folded"], "--push", "published-folded", "--json")
    done = run_ctxforge(shelf.hub, shelf.token, home, *words)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["changed"], answer["commit"]) == (False, before)
    assert answer["push"]["nothing_to_do"]
    assert shelf.hub.repo("me/published-folded").head() == before
    assert not weight_requests(shelf.hub.requests)
    assert not [one for one in shelf.hub.requests if one.method == "PUT" or "/commit/" in one.path]
