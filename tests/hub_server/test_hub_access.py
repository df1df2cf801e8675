"""Who may do what: roles, scopes, private, gated and disabled repositories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import HubServer


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    with pytest.raises(HfHubHTTPError) as error:
        call(*arguments, **options)
    return int(error.value.response.status_code)


def commit(client: Any, repo: str, **options: Any) -> Any:
    name = "proposed" if options else "a"
    return client.create_commit(repo, [CommitOperationAdd(name, b"a")], commit_message="Add", **options)


def test_who_am_i(hub: HubServer, api: Callable[..., Any]) -> None:
    writer = api("me", orgs={"lab": "read", "org": "admin"}).whoami()
    assert (writer["name"], writer["type"], writer["auth"]["accessToken"]["role"]) == ("me", "user", "write")
    assert {org["name"]: org["roleInOrg"] for org in writer["orgs"]} == {"lab": "read", "org": "admin"}
    fine = api("fine", scopes={"fine": ["repo.content.read"], "org/model": ["repo.write"]}).whoami()["auth"]
    assert fine["accessToken"]["role"] == "fineGrained"
    scoped = fine["accessToken"]["fineGrained"]["scoped"]
    assert [(item["entity"]["type"], item["entity"]["name"], item["permissions"]) for item in scoped] == [
        ("user", "fine", ["repo.content.read"]),
        ("model", "org/model", ["repo.write"]),
    ]
    expired = api("old", role="expired")
    assert refused(expired.whoami) == 401
    assert refused(expired.model_info, "org/anything") == 401
    unknown = type(expired)(endpoint=hub.url, token="hf_unknown")
    assert refused(unknown.whoami) == 401


@pytest.mark.parametrize(
    ("account", "creates", "commits", "proposes"),
    [
        ({"orgs": ["org"]}, True, True, True),
        ({"orgs": {"org": "read"}}, False, False, True),
        ({}, False, False, True),
        ({"role": "read", "orgs": ["org"]}, False, False, False),
        ({"orgs": ["org"], "scopes": {"org": ["repo.content.read"]}}, False, False, False),
        ({"orgs": ["org"], "scopes": {"org": ["repo.write"]}}, True, True, True),
        ({"orgs": ["org"], "scopes": {"org/model": ["repo.write"]}}, False, True, True),
        ({"orgs": ["org"], "scopes": {"me": ["repo.write"]}}, False, False, True),
        ({"scopes": {"me": ["discussion.write"]}}, False, False, True),
    ],
)
def test_roles(
    hub: HubServer, api: Callable[..., Any], account: dict[str, Any], creates: bool, commits: bool, proposes: bool
) -> None:
    hub.add_repo("org/model", {"config.json": b"{}"})
    me = api("me", **account)
    if creates:
        me.create_repo("org/new")
    else:
        assert refused(me.create_repo, "org/new") == 403
    if commits:
        commit(me, "org/model")
    else:
        assert refused(commit, me, "org/model") == 403
    if proposes:
        commit(me, "org/model", create_pr=True)
    else:
        assert refused(commit, me, "org/model", create_pr=True) == 403
    assert hub.has_repo("org/new") == creates
    assert ("a" in hub.repo("org/model").files()) == commits
    assert len(hub.repo("org/model").pull_requests) == proposes


def test_nobody_writes_without_a_token(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.add_repo("org/model", {"config.json": b"{}"})
    assert refused(commit, api(None), "org/model") == 401
    assert refused(api(None).create_repo, "org/new") == 401


def test_a_private_repository_does_not_exist_for_strangers(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.add_repo("org/secret", {"config.json": b"{}"}, private=True)
    for client, code in ((api(None), 401), (api("stranger"), 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            client.model_info("org/secret")
        assert error.value.response.status_code == code
        assert not client.file_exists("org/secret", "config.json")
        missing = refused(client.model_info, "org/none")
        assert missing == code, "a private repository must look like one that isn't there"
    fine = api("member", orgs=["org"], scopes={"org/secret": ["repo.content.read"]})
    assert fine.model_info("org/secret").private
    assert api("elsewhere", orgs=["org"], scopes={"org/x": ["repo.content.read"]}).repo_exists("org/secret") is False


def test_a_gated_repository_shows_itself_but_not_its_files(hub: HubServer, api: Callable[..., Any]) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"\0weights"}
    sha = hub.add_repo("org/gated", files, gated=True, granted=["friend"])
    friend = api("friend")
    for client, code in ((api(None), 401), (api("stranger"), 403), (api("friend2", scopes={}, reads_gated=False), 403)):
        assert client.model_info("org/gated").gated == "manual"
        assert {entry.path for entry in client.list_repo_tree("org/gated")} == set(files)
        with pytest.raises(GatedRepoError) as error:
            client.auth_check("org/gated")
        assert error.value.response.status_code == code
        with pytest.raises(GatedRepoError):
            client.hf_hub_download("org/gated", "config.json")
    assert friend.hf_hub_download("org/gated", "config.json")

    def copy(client: Any, name: str) -> None:
        client.create_repo(f"{name}/copy")
        operation = CommitOperationCopy("model.safetensors", "model.safetensors", sha, "org/gated", "model")
        client.create_commit(f"{name}/copy", [operation], commit_message="Copy")

    assert refused(copy, api("stranger"), "stranger") == 403
    assert hub.repo("stranger/copy").linked == set()
    copy(friend, "friend")
    assert hub.repo("friend/copy").read("model.safetensors") == b"\0weights"
    hub.grant("org/gated", "stranger")
    api("stranger").auth_check("org/gated")


def test_what_is_not_there(hub: HubServer, api: Callable[..., Any]) -> None:
    hub.add_repo("org/model", {"config.json": b"{}"})
    hub.add_repo("org/gone", {"config.json": b"{}"}, disabled=True)
    me = api("me")
    with pytest.raises(RevisionNotFoundError):
        me.model_info("org/model", revision="no-such-branch")
    with pytest.raises(RemoteEntryNotFoundError) as error:
        me.hf_hub_download("org/model", "no-such-file")
    assert error.value.response.headers["X-Repo-Commit"] == hub.repo("org/model").head()
    with pytest.raises(DisabledRepoError):
        me.model_info("org/gone")
    assert me.file_exists("org/model", "config.json")
    assert not me.file_exists("org/model", "nothing")
    assert me.get_paths_info("org/model", ["nothing"]) == []
    with pytest.raises(RemoteEntryNotFoundError):
        list(me.list_repo_tree("org/model", "no/such/folder"))
