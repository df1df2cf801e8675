"""The parts by themselves: hashes against git's own, what passes by itself, what is told of this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctxforge import pipeline
from ctxforge.publish import PushOptions, publish
from ctxforge.publish.account import read_account
from ctxforge.publish.files import Data, Held, OnDisk, OnHub, Wanted, already_held, git_blob_id
from ctxforge.publish.publication import public_record
from ctxforge.publish.repository import Repository
from ctxforge.publish.retry import Backoff, retry_after, status_of, transient, without_xet_storage
from ctxforge.publish.routes import Refused, find_route
from ctxforge.recipe import ConversionRecipe, MethodChoice, OutputOptions
from tests.hub_server import HubServer
from tests.llama_folder import safetensors_bytes
from tests.publish.conftest import Connect
from tests.publish.conversions import Bench, make_bench
from tests.publish.sources import contents


class FailedError(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__()
        self.response = SimpleNamespace(
            status_code=status, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )


def test_blob_ids_are_gits_own(tmp_path: Path) -> None:
    for data in (b"", b"a\n", bytes(range(256)) * 40_000):
        (tmp_path / "file").write_bytes(data)
        asked = ["git", "hash-object", "--no-filters", str(tmp_path / "file")]
        theirs = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        disk = OnDisk(tmp_path / "file", len(data))
        assert git_blob_id(data) == Data(data).oid == disk.oid == theirs
        assert Data(data).sha256 == disk.sha256 == hashlib.sha256(data).hexdigest()


def test_what_is_held_already() -> None:
    wanted = Wanted("x", Data(b"abc"))
    digest = hashlib.sha256(b"abc").hexdigest()
    small, large = Held("x", 3, git_blob_id(b"abc")), Held("x", 3, "pointer", digest)
    assert already_held(wanted, small, {})
    assert already_held(wanted, large, {})
    assert not already_held(wanted, None, {})
    assert not already_held(wanted, Held("x", 3, git_blob_id(b"abd")), {})
    assert not already_held(wanted, Held("x", 4, "pointer", digest), {})
    # A pointer's own id says nothing of what it points to.
    assert not already_held(Wanted("x", OnHub(Held("x", 3, "pointer", digest))), Held("x", 3, "pointer"), {})


def test_routes() -> None:
    large = Held("w", 3, "p", hashlib.sha256(b"abc").hexdigest(), "xet")
    source = Repository("org/source", "0" * 40, False, False, {"w": large, "c": Held("c", 3, "q")})
    target = Repository("me/x", "1" * 40, False, False, {})
    there = Repository("me/x", "1" * 40, False, False, {"w": large})

    def route(
        contents: Data | OnHub, path: str = "w", at: Repository = target, **more: Refused
    ) -> tuple[str, int, int]:
        step = find_route(Wanted(path, contents), source, at, results={}, **more)
        return step.route, step.download, step.upload

    assert route(OnHub(large)) == ("copied", 0, 0)
    assert route(Data(b"abc")) == ("copied", 0, 0)
    assert route(Data(b"abd")) == ("sent", 0, 4)
    assert route(OnHub(large), at=there) == ("kept", 0, 0)
    assert route(OnHub(source.files["c"]), "c") == ("passed", 3, 4)
    assert route(OnHub(large), refused=Refused(frozenset({"w"}), "why")) == ("fetched", 3, 3)
    bare = OnHub(Held("w", 3, "p", large.sha256))
    assert route(bare) == ("fetched", 3, 3)
    assert route(bare, at=Repository("org/source", "2" * 40, False, False, {})) == ("copied", 0, 0)


def test_what_passes_by_itself() -> None:
    assert [
        status for status in (400, 401, 403, 404, 408, 409, 412, 429, 500, 503) if transient(FailedError(status))
    ] == [
        408,
        429,
        500,
        503,
    ]
    assert transient(ConnectionResetError())
    assert transient(json.JSONDecodeError("cut", "", 0))
    assert not transient(ValueError())
    told = ConnectionError(
        "Network error: HTTP status client error (404 Not Found), domain: http://h/xet-write-token/main"
    )
    assert (status_of(told), transient(told), without_xet_storage(told)) == (404, False, True)
    wrapped = RuntimeError("while uploading")
    wrapped.__cause__ = FailedError(503)
    assert transient(wrapped)


def test_how_long_it_waits() -> None:
    assert retry_after(FailedError(429, retry_after="12")) == 12
    assert retry_after(FailedError(429, retry_after="Thu, 01 Jan 1970 00:00:01 GMT")) == 0
    assert retry_after(FailedError(429, retry_after="soon")) is None
    assert retry_after(FailedError(429, ratelimit='"api";r=0;t=55')) == 56
    assert retry_after(FailedError(429, ratelimit='"api";r=3;t=55')) is None
    waited: list[float] = []
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise FailedError(503)

    with pytest.raises(FailedError):
        Backoff(attempts=7, longest=10, sleep=waited.append).run("x", fail)
    assert (len(tries), waited) == (7, [1, 2, 4, 8, 10, 10])


def test_scopes_of_tokens() -> None:
    scoped = [{"entity": {"type": "org", "name": "org"}, "permissions": ["repo.write"]}]
    answer = {
        "name": "me",
        "orgs": [{"name": "org", "roleInOrg": "admin"}, {"name": "seen", "roleInOrg": "read"}],
        "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": scoped}}},
    }
    account = read_account(answer)
    assert (account.name, account.organisations, account.role) == ("me", ("org",), "fineGrained")
    assert account.scopes == (("org", "org", frozenset({"repo.write"})),)
    # Tokens of other kinds tell no role: then the Hub itself decides.
    assert read_account({"name": "me"}).role == ""


def test_no_path_of_this_machine_is_told() -> None:
    record = {
        "source": {"name": "models/secret/llama", "revision": None},
        "recipe": {"source": "models/secret/llama"},
        "calibrations": [{"data": ["/home/me/books.jsonl", "wikitext"]}],
        "previous": {"source": {"name": "org/name", "revision": "0" * 40}, "at": "~/models/x"},
    }
    told = public_record(record)
    assert told["source"]["name"] == told["recipe"]["source"] == "llama"
    assert told["calibrations"] == [{"data": ["books.jsonl", "wikitext"]}]
    assert told["previous"] == {"source": {"name": "org/name", "revision": "0" * 40}, "at": "x"}
    assert record["source"]["name"] == "models/secret/llama"  # untouched


def learned(folder: Path) -> Path:
    """A GPT-2 of one layer in two shards, its table of 64 positions in the first."""
    folder.mkdir()
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 64, "n_ctx": 64, "n_embd": 16}
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 1, "n_head": 2, "vocab_size": 8}, indent=2))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    parts = ({"wpe.weight": (64, 16), "wte.weight": (8, 16)}, {"h.0.attn.c_attn.weight": (16, 48)})
    weight_map = {}
    for number, shapes in enumerate(parts, 1):
        name = f"model-{number:05}-of-00002.safetensors"
        data = safetensors_bytes(shapes)
        start = 8 + int.from_bytes(data[:8], "little")
        numbers = b"".join((0x3F80 + i % 100).to_bytes(2, "little") for i in range((len(data) - start) // 2))
        (folder / name).write_bytes(data[:start] + numbers)
        weight_map |= dict.fromkeys(shapes, name)
    total = 2 * (64 * 16 + 8 * 16 + 16 * 48)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_table_that_grows(
    hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Learned positions: the shard changes its size, and so does the index."""
    bench: Bench = make_bench(hub, connected, monkeypatch, tmp_path)
    hub.add_repo("org/learned", contents(learned(tmp_path / "learned")))
    recipe = ConversionRecipe(source="org/learned", method=MethodChoice(name="learned-interpolation"), to="2x")
    done = publish(pipeline.plan_to_publish(recipe), PushOptions(repo="long"), connection=bench.connection)
    assert [step.wanted.path for step in done.plan.of_route("rewritten")] == ["model-00001-of-00002.safetensors"]
    assert done.plan.disk > 2 * 64 * 16 * 3  # before and after, both at once
    out = pipeline.extend(recipe, OutputOptions(out=tmp_path / "out")).out
    repo = hub.repo("me/long")
    for name in ("config.json", "model.safetensors.index.json", *(path.name for path in out.glob("*.safetensors"))):
        assert repo.read(name) == (out / name).read_bytes(), name
    assert repo.files()["model-00001-of-00002.safetensors"].size > 64 * 16 * 2 * 2
    again = publish(pipeline.plan_to_publish(recipe), PushOptions(repo="long"), connection=bench.connection)
    assert (again.changed, again.plan.nothing_to_do) == (False, True)
