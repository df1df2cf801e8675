"""Pushing in this process: every route, branches and pull requests, what stays, and what comes back after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctxforge import pipeline, push
from ctxforge.errors import HubError, UsageError
from ctxforge.publish import PushOptions, plan_publish, plan_push, plan_source, publish
from ctxforge.publish import push as push_folder
from ctxforge.publish.files import OnDisk
from ctxforge.publish.retry import Backoff
from tests.hub_server import Fault, HubServer
from tests.publish.conftest import Connect
from tests.publish.conversions import SOURCE, Bench, make_bench
from tests.publish.sources import ones


@pytest.fixture
def bench(hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return make_bench(hub, connected, monkeypatch, tmp_path)


def routes(plan: Any) -> dict[str, str]:
    return {step.wanted.path: step.route for step in plan.steps}


def sent(hub: HubServer) -> int:
    """Bytes of large files that were uploaded."""
    return sum(one.received for one in hub.requests if one.method == "PUT")


def shards(files: Any) -> dict[str, str]:
    return {name: one.sha256 for name, one in files.items() if name.endswith(".safetensors")}


def test_what_a_folder_shares_with_its_source_is_copied_there(bench: Bench) -> None:
    folder = bench.folder()
    plan = plan_push(folder, PushOptions(), connection=bench.connection).plan
    assert plan.repo == "me/source-yarn-16k"
    assert {path for path, route in routes(plan).items() if route == "copied"} == set(
        shards(bench.hub.repo(SOURCE).files())
    )
    bench.hub.reset()
    done = push_folder(folder, PushOptions(), connection=bench.connection)
    assert sent(bench.hub) == 0
    repo = bench.hub.repo("me/source-yarn-16k")
    assert (done.commit, done.changed) == (repo.head(), True)
    assert shards(repo.files()) == shards(bench.hub.repo(SOURCE).files())
    record = json.loads(repo.read("ctxforge.json"))
    assert shards(repo.files()).items() <= record["files"].items()
    assert not {"README.md", ".gitattributes"} & set(record["files"])
    again = push_folder(folder, PushOptions(), connection=bench.connection)
    assert (again.commit, again.changed) == (done.commit, False)
    assert again.plan.nothing_to_do


def test_a_folded_folder_uploads_its_edited_shards_alone(bench: Bench) -> None:
    folder = bench.folder(temperature=1.2)
    first = sorted(folder.glob("*.safetensors"))[0]
    before = shards(bench.hub.repo(SOURCE).files())
    plan = plan_push(folder, PushOptions(), connection=bench.connection).plan
    assert {routes(plan)[name] for name in before} == {"uploaded"}
    assert {step.reason for step in plan.of_route("uploaded")} == {"it differs from the source's"}
    # One that is the source's again is copied: what counts is the bytes, not what the conversion says it did.
    first.write_bytes((bench.local / first.name).read_bytes())
    plan = plan_push(folder, PushOptions(force=True), connection=bench.connection).plan
    assert routes(plan)[first.name] == "copied"
    # Of the same size and name, and not the same.
    data = first.read_bytes()
    first.write_bytes(data[:-2] + b"\0\0")
    plan = plan_push(folder, PushOptions(force=True), connection=bench.connection).plan
    assert routes(plan)[first.name] == "uploaded"


def test_of_a_local_source_everything_is_uploaded_and_no_path_is_told(bench: Bench, tmp_path: Path) -> None:
    local = ones(tmp_path / "private place" / "my-model")
    folder = bench.folder("from-local", source=str(local))
    done = push_folder(folder, PushOptions(), connection=bench.connection)
    assert done.repo == "me/my-model-yarn-16k"
    repo = bench.hub.repo(done.repo)
    published = b"".join(repo.read(name) for name in repo.files())
    assert str(tmp_path).encode() not in published
    assert b"private place" not in published
    assert json.loads(repo.read("ctxforge.json"))["source"]["name"] == "my-model"
    # The same without a folder between.
    conversion = pipeline.plan_to_publish(bench.recipe(source=str(local)))
    straight = publish(conversion, PushOptions(repo="straight"), connection=bench.connection)
    direct = bench.hub.repo(straight.repo)
    assert set(direct.files()) == set(repo.files())
    for name in set(repo.files()) - {"README.md", "ctxforge.json"}:
        assert direct.read(name) == repo.read(name)
    records = [json.loads(one.read("ctxforge.json")) for one in (direct, repo)]
    digests = [record.pop("card_sha256") for record in records]
    assert records[0] == records[1]
    assert digests == [direct.files()["README.md"].sha256, repo.files()["README.md"].sha256]


@pytest.mark.parametrize("kind", ["no xet", "older", "another region", "lost object"])
def test_where_the_server_does_not_copy_files_are_fetched_and_uploaded(
    hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str], kind: str
) -> None:
    hub.options.older = kind == "older"
    more: dict[str, Any] = {"no xet": {"xet": False}, "another region": {"region": "eu"}}.get(kind, {})
    bench = make_bench(hub, connected, monkeypatch, tmp_path, **more)
    source = hub.repo(SOURCE)
    if kind == "lost object":
        source.linked.discard(next(iter(shards(source.files()).values())))
    conversion = bench.conversion()
    plan = plan_publish(conversion, PushOptions(), connection=bench.connection).plan
    foreseen = {"no xet": "fetched", "older": "fetched"}.get(kind, "copied")
    assert {routes(plan)[name] for name in shards(source.files())} == {foreseen}
    if foreseen == "fetched":
        assert "no xet hash" in plan.of_route("fetched")[0].reason
        assert plan.to_upload > sum(source.files()[name].size for name in shards(source.files()))
    done = publish(conversion, PushOptions(), connection=bench.connection)
    assert shards(hub.repo(done.repo).files()) == shards(source.files())
    assert len(hub.states(done.repo)) == 2
    assert len(done.not_copied) == {"another region": 2, "lost object": 1}.get(kind, 0)
    assert any("uploaded instead" in line for line in said) == (foreseen == "copied")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_branch_of_the_source_itself_moves_only_what_changed(bench: Bench, connected: Connect) -> None:
    owner = connected("org")
    before = bench.hub.repo(SOURCE).head()
    bench.hub.push(SOURCE, {"later.txt": b"after the conversion was planned"})
    conversion = bench.conversion()
    assert conversion.checkpoint.revision != before
    done = publish(conversion, PushOptions(repo=SOURCE, branch="yarn-16k"), connection=owner)
    repo = bench.hub.repo(SOURCE)
    assert done.commit == repo.head("yarn-16k")
    assert repo.commits("yarn-16k")[0].parent == conversion.checkpoint.revision == repo.head()
    assert set(repo.commits("yarn-16k")[0].paths) >= {"config.json", "README.md", "ctxforge.json"}
    assert not [path for path in repo.commits("yarn-16k")[0].paths if path.endswith(".safetensors")]
    assert not publish(conversion, PushOptions(repo=SOURCE, branch="yarn-16k"), connection=owner).changed


def test_a_card_of_ours_in_the_folder_is_made_anew_around_what_stands_outside(bench: Bench) -> None:
    """With its figures, for this repository and branch, and with the lines of the user's own text as they end."""
    folder = bench.folder()
    push_folder(folder, PushOptions(repo="me/first"), connection=bench.connection)
    ours = bench.hub.repo("me/first").read("README.md")
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "README.md").write_bytes(ours + b"\nA word of mine.\r\n")
    push_folder(folder, PushOptions(repo="me/second", branch="tried"), connection=bench.connection)
    repo = bench.hub.repo("me/second")
    card = repo.read("README.md", "tried")
    assert card.endswith(b"A word of mine.\r\n")
    assert card.count(b"ctxforge: begin") == 1
    assert b"me/second" in card
    assert b"me/first" not in card
    assert b"--revision tried" in card
    assert {"ctxforge-lambda.svg"} <= set(repo.files("tried"))


def test_a_branch_leaves_main_alone(bench: Bench) -> None:
    bench.hub.add_repo("me/x", {"README.md": b"mine"})
    main = bench.hub.repo("me/x").head()
    options = PushOptions(repo="x", branch="long")
    publish(bench.conversion(), options, connection=bench.connection)
    repo = bench.hub.repo("me/x")
    assert repo.head() == main
    assert "ctxforge.json" in repo.files("long")


def test_a_pull_request_is_opened_once(bench: Bench) -> None:
    """With the answer lost on the way, and again."""
    bench.hub.add_repo("me/x", {"README.md": b"theirs"})
    main = bench.hub.repo("me/x").head()
    conversion = bench.conversion()
    options = PushOptions(repo="me/x", create_pr=True)
    bench.hub.inject(Fault("drop", "POST", "/commit/", when="after"))
    done = publish(conversion, options, connection=bench.connection)
    repo = bench.hub.repo("me/x")
    assert repo.head() == main
    assert [one.number for one in repo.pull_requests] == [done.pull_request]
    assert done.url == f"{bench.hub.url}/me/x/discussions/{done.pull_request}"
    assert "config.json" in repo.files(f"refs/pr/{done.pull_request}")
    again = publish(conversion, options, connection=bench.connection)
    assert (again.pull_request, again.changed) == (done.pull_request, False)
    assert len(repo.pull_requests) == 1
    with pytest.raises(HubError, match="to open a pull request on"):
        publish(conversion, PushOptions(repo="me/none", create_pr=True), connection=bench.connection)


def test_a_later_push_replaces_what_an_earlier_one_left(bench: Bench, tmp_path: Path) -> None:
    push_folder(bench.folder(), PushOptions(repo="x"), connection=bench.connection)
    bench.hub.push("me/x", {"notes.md": b"somebody's"})
    one = ones(tmp_path / "one", shards=1)
    (one / "extra.txt").write_text("of the first push")
    push_folder(bench.folder("second", source=str(one)), PushOptions(repo="x"), connection=bench.connection)
    (one / "extra.txt").unlink()
    push_folder(bench.folder("third", source=str(one)), PushOptions(repo="x"), connection=bench.connection)
    files = bench.hub.repo("me/x").files()
    assert list(shards(files)) == ["model-00001-of-00001.safetensors"]
    assert "notes.md" in files
    assert "extra.txt" not in files
    for state in bench.hub.states("me/x"):
        index = state.get("model.safetensors.index.json")
        named = set() if index is None else len(shards(state))
        assert named in (set(), 1, 2)


def test_a_card_that_was_edited_at_the_hub_is_missed_by_nobody(bench: Bench, said: list[str]) -> None:
    folder = bench.folder()
    push_folder(folder, PushOptions(repo="x"), connection=bench.connection)
    edited = bench.hub.repo("me/x").read("README.md") + b"\nMore of it.\n"
    bench.hub.push("me/x", {"README.md": edited})
    plan = plan_push(folder, PushOptions(repo="x"), connection=bench.connection).plan
    assert routes(plan)["README.md"] == "sent"
    assert plan.warnings == ("README.md of me/x was edited there, and is replaced",)
    push_folder(folder, PushOptions(repo="x"), connection=bench.connection)
    assert plan_push(folder, PushOptions(repo="x"), connection=bench.connection).plan.warnings == ()


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"source": 1, "plan": [], "recipe": "x", "files": [1], "edited_tensors": 3, "previous": 7},
        {"source": {"name": "a b/../c", "revision": "0" * 40}, "files": {"config.json": 5}},
        {"source": {"name": "nobody/nothing", "revision": "main"}, "plan": {"target_length": "64k", "attachment": []}},
    ],
)
def test_a_folder_with_a_provenance_that_makes_no_sense(bench: Bench, tmp_path: Path, record: dict[str, Any]) -> None:
    folder = ones(tmp_path / "odd")
    (folder / "ctxforge.json").write_text(json.dumps(record))
    done = push_folder(folder, PushOptions(repo="odd", force=True), connection=bench.connection)
    assert set(shards(bench.hub.repo(done.repo).files())) == {path.name for path in folder.glob("*.safetensors")}
    assert "ctxforge.json" in bench.hub.repo(done.repo).files()


def test_a_folder_without_provenance_is_published_as_it_is(bench: Bench, tmp_path: Path) -> None:
    folder = ones(tmp_path / "plain")
    done = push_folder(folder, PushOptions(repo="plain"), connection=bench.connection)
    repo = bench.hub.repo(done.repo)
    assert {name: repo.read(name) for name in repo.files() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    with pytest.raises(UsageError, match="no name"):
        push_folder(folder, PushOptions(), connection=bench.connection)


def test_a_plan_hashes_no_more_than_it_compares(bench: Bench, tmp_path: Path) -> None:
    local = ones(tmp_path / "mine")
    folder = bench.folder("from-mine", source=str(local))
    prepared = plan_push(folder, PushOptions(), connection=bench.connection)
    weights = [one.contents for one in prepared.publication.wanted if one.path.endswith(".safetensors")]
    assert [one.is_hashed for one in weights if isinstance(one, OnDisk)] == [False, False]


def test_the_answer_of_a_commit_is_lost(bench: Bench) -> None:
    bench.hub.inject(Fault("drop", "POST", "/commit/", when="after"))
    done = publish(bench.conversion(), PushOptions(repo="x"), connection=bench.connection)
    assert done.commit == bench.hub.repo("me/x").head()
    assert len(bench.hub.repo("me/x").commits()) == 2


def test_somebody_else_commits_meanwhile(bench: Bench) -> None:
    conversion = bench.conversion()
    theirs = Fault("act", "POST", "/commit/", action=lambda: bench.hub.push("me/x", {"theirs.txt": b"1"}))
    bench.hub.inject(theirs)
    with pytest.raises(HubError, match="Somebody else committed"):
        publish(conversion, PushOptions(repo="x"), connection=bench.connection)
    assert set(bench.hub.repo("me/x").files()) == {".gitattributes", "theirs.txt"}
    with pytest.raises(HubError, match="did not put there"):
        publish(conversion, PushOptions(repo="x"), connection=bench.connection)


def test_a_gitignore_in_the_target_keeps_nothing_out(bench: Bench) -> None:
    bench.hub.add_repo("me/x", {".gitignore": b"*.safetensors\nconfig.json\n"})
    done = publish(bench.conversion("pi", 1.2), PushOptions(repo="x"), connection=bench.connection)
    files = bench.hub.repo(done.repo).files()
    assert {"config.json", *shards(bench.hub.repo(SOURCE).files())} <= set(files)


def test_a_rerun_of_a_broken_fold_moves_no_weights(bench: Bench) -> None:
    conversion = bench.conversion("pi", 1.2)
    bench.hub.inject(Fault("status", "POST", "/commit/", status=503, times=None))
    with pytest.raises(HubError, match="503"):
        publish(conversion, PushOptions(repo="x"), connection=bench.connection)
    assert sent(bench.hub) > 0
    bench.hub.clear_faults()
    bench.hub.reset()
    done = publish(conversion, PushOptions(repo="x"), connection=bench.connection)
    assert done.changed
    assert sent(bench.hub) == 0
    assert not [one for one in bench.hub.requests if one.path.endswith(".safetensors")]
    folder = bench.folder(temperature=1.2)
    for name in shards(bench.hub.repo(SOURCE).files()):
        assert bench.hub.repo("me/x").read(name) == (folder / name).read_bytes()


def test_a_rerun_of_a_broken_upload_sends_no_weights(bench: Bench, tmp_path: Path) -> None:
    folder = bench.folder("from-mine", source=str(ones(tmp_path / "mine")))
    bench.hub.inject(Fault("status", "POST", "/commit/", status=403))
    with pytest.raises(HubError, match="forbids"):
        push_folder(folder, PushOptions(repo="x"), connection=bench.connection)
    assert sent(bench.hub) == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    bench.hub.reset()
    assert push_folder(folder, PushOptions(repo="x"), connection=bench.connection).changed
    assert sent(bench.hub) == 0


def test_waiting_as_long_as_the_hub_asks(hub: HubServer, bench: Bench) -> None:
    from dataclasses import replace

    waited: list[float] = []
    patient = replace(bench.connection, backoff=Backoff(sleep=waited.append))
    hub.inject(Fault("status", "GET", "whoami", status=429, headers={"Retry-After": "42"}))
    hub.inject(Fault("drop", "GET", "/api/models/me/x/revision", times=3))
    publish(bench.conversion(), PushOptions(repo="x"), connection=patient)
    assert waited == [42.0, 1.0, 2.0, 4.0]
    waited.clear()
    hub.inject(Fault("status", "GET", r"/api/models/org/source$", status=503, times=2))
    plan_source(bench.recipe(), backoff=patient.backoff)
    assert waited == [1.0, 2.0]
    hub.inject(Fault("status", "GET", "whoami", status=429, headers={"Retry-After": "4000"}))
    with pytest.raises(HubError, match="4000 s"):
        publish(bench.conversion(), PushOptions(repo="x"), connection=patient)


def test_a_hub_without_xet_is_given_large_files_by_lfs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """With hf_xet installed and not switched off, which fails hard there."""
    from huggingface_hub import constants

    folder = bench.folder("from-mine", source=str(ones(bench.base / "mine")))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    done = push_folder(folder, PushOptions(), connection=bench.connection)
    assert any("/xet-write-token/" in one.path for one in bench.hub.requests)
    assert "this Hub has no Xet storage: large files go by Git LFS" in said
    assert len(shards(bench.hub.repo(done.repo).files())) == 2
    assert constants.HF_HUB_DISABLE_XET is False


def test_waits_are_told_and_addresses_are_not(
    bench: Bench, hub: HubServer, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    local = ones(bench.base / "mine")
    folder = bench.folder("from-mine", source=str(local))
    hub.inject(Fault("status", "PUT", "", status=503), Fault("drop", "POST", "/preupload/", when="before"))
    capfd.readouterr()
    push_folder(folder, PushOptions(repo="x"), connection=bench.connection)
    assert "the Hub has trouble: retrying in 1s [Retry 1/5]." in said
    captured = capfd.readouterr()
    assert "127.0.0.1" not in captured.out + captured.err + "".join(said)


def test_the_python_function(bench: Bench) -> None:
    done = push(bench.folder(), "me/by-python", private=True, message="By hand")
    repo = bench.hub.repo("me/by-python")
    assert (repo.private, repo.commits()[0].message) == (True, "By hand")
    assert done.url == f"{bench.hub.url}/me/by-python/commit/{repo.head()}"
