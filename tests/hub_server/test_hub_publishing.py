"""The installed huggingface_hub publishes to the server: every call that ctxforge makes, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import BadRequestError, FileDuplicationError, HfHubHTTPError, RepositoryNotFoundError

from tests.hub_server import HubServer

WEIGHTS = b"\0weights" * 1000
CARD = b"---\nlicense: mit\ntags: [long-context]\n---\n# A card\n"


def copies(*paths: str, sha: str, source: str = "org/source") -> list[CommitOperationCopy]:
    return [
        CommitOperationCopy(path, path, src_revision=sha, src_repo_id=source, src_repo_type="model") for path in paths
    ]


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return int(error.value.response.status_code)


def test_one_commit_with_server_side_copies(hub: HubServer, api: Callable[..., Any], tmp_path: Path) -> None:
    """8 GB change hands without a byte of it being read: the file is sparse, and its hash is made up."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(8 << 30)
    made_up = "ab" * 32
    sha = hub.add_repo(
        "org/source",
        {"model.safetensors": tmp_path / "big", "tokenizer.json": b'{"a": 1}'},
        sha256={"model.safetensors": made_up},
    )
    me = api("me")
    assert str(me.create_repo("me/copy", private=True)) == f"{hub.url}/me/copy"
    head = me.model_info("me/copy").sha
    hub.reset()
    added = [CommitOperationAdd("README.md", CARD), CommitOperationAdd("config.json", b"{}")]
    info = me.create_commit(
        "me/copy",
        copies("model.safetensors", "tokenizer.json", sha=sha) + added,
        commit_message="Convert",
        commit_description="Twice as long",
        parent_commit=head,
    )

    repo = hub.repo("me/copy")
    assert repo.private
    assert repo.head() == info.oid
    newest, first = repo.commits()
    assert (newest.message, newest.description, newest.parent) == ("Convert", "Twice as long", first.sha)
    assert newest.paths == ("README.md", "config.json", "model.safetensors", "tokenizer.json")
    copied = repo.files()["model.safetensors"]
    assert (copied.size, copied.sha256, copied.lfs) == (8 << 30, made_up, True)
    assert copied.xet_hash == hub.repo("org/source").files()["model.safetensors"].xet_hash is not None
    assert repo.read("README.md") == CARD
    assert repo.read("tokenizer.json") == b'{"a": 1}'
    # Small files only, both ways; the states of main are the first commit and the whole of the second.
    assert hub.received + hub.sent < 5_000
    assert [sorted(state) for state in hub.states("me/copy")] == [sorted(first.files), sorted(newest.files)]
    assert not list((hub.folder / "objects").glob("*.tmp"))


def test_uploads_in_parts_and_at_once_and_never_twice(hub: HubServer, api: Callable[..., Any], tmp_path: Path) -> None:
    hub.options.multipart_above, hub.options.part_size = 100_000, 40_000
    big = bytes(range(256)) * 500  # 128,000 bytes: four parts
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "big.bin").write_bytes(big)
    (folder / "sub/small.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_bytes(CARD)
    (folder / "notes").write_bytes(b"text\0with a NUL")
    me = api("me", orgs=["org"])
    me.create_repo("org/up")
    me.upload_folder(repo_id="org/up", folder_path=folder, commit_message="Upload")

    repo = hub.repo("org/up")
    assert repo.read("big.bin") == big
    assert repo.read("sub/small.safetensors") == WEIGHTS
    assert {path for path, file in repo.files().items() if file.lfs} == {"big.bin", "sub/small.safetensors", "notes"}
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert sorted(request.received for request in puts) == [15, 8000, 8000, 40_000, 40_000, 40_000]

    # The same folder again changes nothing; one of its objects under another name isn't sent again.
    head = repo.head()
    hub.reset()
    me.upload_folder(repo_id="org/up", folder_path=folder, commit_message="Again")
    assert repo.head() == head
    me.create_commit("org/up", [CommitOperationAdd("copy.bin", folder / "big.bin")], commit_message="Another name")
    assert [request for request in hub.requests if request.method == "PUT"] == []
    assert repo.read("copy.bin") == big


def test_shards_uploaded_before_the_commit_are_on_no_branch(hub: HubServer, api: Callable[..., Any]) -> None:
    me = api("me")
    me.create_repo("me/model")
    shards = [CommitOperationAdd(f"model-{number}.safetensors", WEIGHTS + bytes([number])) for number in range(3)]
    for shard in shards:
        me.preupload_lfs_files("me/model", additions=[shard])
        assert sorted(hub.repo("me/model").files()) == [".gitattributes"]
    hub.reset()
    me.create_commit("me/model", shards, commit_message="All at once")
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert hub.repo("me/model").read("model-2.safetensors") == WEIGHTS + b"\2"
    assert [len(state) for state in hub.states("me/model")] == [1, 4]


def test_a_pointer_to_what_the_repository_lacks_is_refused(hub: HubServer, api: Callable[..., Any]) -> None:
    """Present on the server isn't enough: without `lfs-files/duplicate` a copy would be a theft."""
    hub.add_repo("org/source", {"model.safetensors": WEIGHTS})
    me = api("me")
    me.create_repo("me/model")
    stolen = CommitOperationAdd("model.safetensors", WEIGHTS)
    stolen._upload_mode, stolen._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        me.create_commit("me/model", [CommitOperationAdd("a", b"a"), stolen], commit_message="No")
    assert sorted(hub.repo("me/model").files()) == [".gitattributes"]


def test_copies_that_the_hub_refuses(hub: HubServer, api: Callable[..., Any]) -> None:
    me = api("me")
    me.create_repo("me/model")
    plain = hub.add_repo("org/plain", {"model.safetensors": WEIGHTS}, xet=False)
    with pytest.raises(ValueError, match="has no xet hash"):
        me.create_commit("me/model", copies("model.safetensors", sha=plain, source="org/plain"), commit_message="No")
    far = hub.add_repo("org/far", {"model.safetensors": WEIGHTS}, region="eu")
    with pytest.raises(BadRequestError, match="across storage regions"):
        me.create_commit("me/model", copies("model.safetensors", sha=far, source="org/far"), commit_message="No")
    hub.add_repo("org/source", {"model.safetensors": WEIGHTS})
    wanted = {"target": {"type": "model", "name": "me/model"}}
    unknown = {"xetHash": "0" * 64, "sha256": hashlib.sha256(WEIGHTS).hexdigest(), "filename": "x"}
    assert "xet hash" in post(me, hub, "org/source", wanted | {"files": [unknown]}).json()["failed"][0]["error"]
    absent = post(me, hub, "org/source", wanted | {"files": [unknown | {"sha256": "1" * 64}]})
    assert "not found" in absent.json()["failed"][0]["error"]
    assert post(me, hub, "org/source", wanted | {"files": [unknown] * 501}).status_code == 400
    assert hub.repo("me/model").linked == set()


def test_an_older_hub_has_no_copies(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.options.older = True
    hub.add_repo("org/source", {"model.safetensors": WEIGHTS})
    me = api("me")
    me.create_repo("me/model")
    (entry,) = me.list_repo_tree("org/source")
    assert entry.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert entry.xet_hash is None
    assert post(me, hub, "org/source", {}).status_code == 404


def post(me: Any, hub: HubServer, source: str, body: dict[str, Any]) -> Any:
    from huggingface_hub import get_session

    url = f"{hub.url}/api/models/{source}/lfs-files/duplicate"
    return get_session().post(url, headers=me._build_hf_headers(), json=body)


def test_a_failed_copy_is_reported_by_file(
    hub: HubServer, api: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/source", {"model.safetensors": WEIGHTS})
    me = api("me")
    me.create_repo("me/model")
    hub.repo("org/source").xet = False  # the listing still shows a hash, the copy fails
    with pytest.raises(FileDuplicationError, match="Failed to duplicate files"):
        me.create_commit("me/model", copies("model.safetensors", sha=sha), commit_message="No")


def test_another_commit_in_between_is_412(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.add_repo("me/model", {"config.json": b"{}"})
    me = api("me")
    parent = hub.repo("me/model").head()
    theirs = hub.push("me/model", {"theirs": b"x"}, remove=["config.json"])
    added = [CommitOperationAdd("mine", b"mine")]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        me.create_commit("me/model", added, commit_message="Mine", parent_commit=parent)
    assert status(error) == 412
    assert hub.repo("me/model").head() == theirs
    assert sorted(hub.repo("me/model").files()) == ["theirs"]
    me.create_commit("me/model", added, commit_message="Mine", parent_commit=theirs[:7])
    assert sorted(hub.repo("me/model").files()) == ["mine", "theirs"]


def test_a_pull_request_leaves_main_alone(hub: HubServer, api: Callable[..., Any]) -> None:
    base = hub.add_repo("org/model", {"config.json": b"{}", "old": b"old"})
    hub.push("org/model", {"later": b"x"})
    stranger, owner = api("stranger"), api("owner", orgs=["org"])
    operations = [CommitOperationAdd("config.json", b'{"longer": true}'), CommitOperationDelete("old")]
    info = stranger.create_commit("org/model", operations, commit_message="Longer", create_pr=True, parent_commit=base)
    repo = hub.repo("org/model")
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert sorted(repo.files()) == ["config.json", "later", "old"]
    assert repo.files("refs/pr/1").keys() == {"config.json"}
    assert (repo.pull_requests[0].author, repo.pull_requests[0].status) == ("stranger", "open")
    details = owner.get_discussion_details("org/model", 1)
    assert (details.git_reference, details.target_branch) == ("refs/pr/1", "refs/heads/main")
    assert [found.title for found in owner.get_repo_discussions("org/model")] == ["Longer"]
    owner.merge_pull_request("org/model", 1)
    assert sorted(repo.files()) == ["config.json", "later"]
    assert repo.read("config.json") == b'{"longer": true}'
    assert repo.pull_requests[0].merge_sha == repo.head()


def test_a_draft_takes_commits_until_it_is_opened(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.add_repo("me/model", {"config.json": b"{}"})
    me = api("me")
    draft = me.create_pull_request("me/model", "Draft")
    assert (draft.num, draft.status) == (1, "draft")
    me.create_commit("me/model", [CommitOperationAdd("a", b"a")], commit_message="Add", revision="refs/pr/1")
    assert sorted(hub.repo("me/model").files("refs/pr/1")) == ["a", "config.json"]
    assert sorted(hub.repo("me/model").files()) == ["config.json"]
    assert me.change_discussion_status("me/model", 1, "open").new_status == "open"
    assert [ref.ref for ref in me.list_repo_refs("me/model", include_pull_requests=True).pull_requests] == ["refs/pr/1"]


def test_branches_and_tags(hub: HubServer, api: Callable[..., Any]) -> None:
    first = hub.add_repo("me/model", {"config.json": b"{}"})
    hub.push("me/model", {"more": b"x"})
    me = api("me")
    me.create_branch("me/model", branch="yarn-64k", revision=first)
    with pytest.raises(HfHubHTTPError) as error:
        me.create_branch("me/model", branch="yarn-64k")
    assert status(error) == 409
    me.create_branch("me/model", branch="yarn-64k", exist_ok=True)
    me.create_commit("me/model", [CommitOperationAdd("a", b"a")], commit_message="Add", revision="yarn-64k")
    repo = hub.repo("me/model")
    assert sorted(repo.files("yarn-64k")) == ["a", "config.json"]
    assert sorted(repo.files()) == ["config.json", "more"]
    me.create_tag("me/model", tag="v1", revision="yarn-64k")
    assert me.model_info("me/model", revision="v1").sha == repo.head("yarn-64k")
    assert [commit.title for commit in me.list_repo_commits("me/model", revision="yarn-64k")] == [
        "Add",
        "initial commit",
    ]
    me.delete_branch("me/model", branch="yarn-64k")
    assert repo.branches == ("main",)
    with pytest.raises(HfHubHTTPError, match="Revision Not Found"):
        me.create_commit("me/model", [CommitOperationAdd("b", b"")], commit_message="Add", revision="yarn-64k")


def test_names(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.add_repo("me/data", {}, repo_type="dataset")
    me = api("me")
    me.create_repo("me/model")
    with pytest.raises(HfHubHTTPError, match="already created this model repo") as error:
        me.create_repo("me/model")
    assert status(error) == 409
    assert str(me.create_repo("me/model", exist_ok=True)) == f"{hub.url}/me/model"
    me.create_repo("me/data")  # as on the Hub, a model and a dataset may share a name
    assert hub.has_repo("me/data") != hub.has_repo("me/nothing")
    hub.options.shared_names = False
    hub.add_repo("me/other", {}, repo_type="dataset")
    assert me.create_repo("me/other", exist_ok=True).repo_type == "dataset"
    me.delete_repo("me/model")
    assert not hub.has_repo("me/model")
    with pytest.raises(RepositoryNotFoundError):
        me.model_info("me/model")
    assert [change.what for change in hub.journal if change.repo == "me/model"] == ["create", "ref", "delete"]


def test_a_whole_environment_of_a_child_process(hub: HubServer, tmp_path: Path) -> None:
    """What a subprocess is told suffices: endpoint, token, a home of its own, no Xet, no telemetry."""
    hub.add_repo("me/model", {"config.json": b"{}", "model.safetensors": WEIGHTS}, private=True)
    token = hub.account("me")
    code = (
        "import json, os, sys\nfrom pathlib import Path\nfrom huggingface_hub import snapshot_download, whoami\n"
        "root = Path(snapshot_download('me/model'))\n"
        "print(json.dumps([whoami()['name'], str(root), (root / 'model.safetensors').read_bytes().hex()]))"
    )
    home = tmp_path / "home"
    environment = hub.environment(token, home)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    name, root, content = json.loads(done.stdout)
    assert (name, bytes.fromhex(content)) == ("me", WEIGHTS)
    assert Path(root).is_relative_to(home)
    assert {request.account for request in hub.requests} == {"me"}
    assert token not in done.stderr + done.stdout
