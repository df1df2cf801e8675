"""LFS by hand: what a careful client never sends, and the server must not take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer

CONTENT = b"\0content" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def me(hub: HubServer, api: Callable[..., Any]) -> Any:
    client = api("me")
    client.create_repo("me/model")
    return client


def ask(hub: HubServer, me: Any, size: int = len(CONTENT)) -> dict[str, Any]:
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [{"oid": SHA256, "size": size}]}
    url = f"{hub.url}/me/model.git/info/lfs/objects/batch"
    answer = get_session().post(url, json=body, headers=me._build_hf_headers())
    assert answer.headers["Content-Type"] == "application/vnd.git-lfs+json"
    return dict(answer.json()["objects"][0])


def linked(hub: HubServer) -> bool:
    return SHA256 in hub.repo("me/model").linked


@pytest.mark.parametrize(
    ("sent", "reason"), [(CONTENT[:-1] + b"x", "BadDigest"), (CONTENT[:-1], "IncompleteBody"), (b"", "IncompleteBody")]
)
def test_other_bytes_than_promised_are_refused(hub: HubServer, me: Any, sent: bytes, reason: str) -> None:
    actions = ask(hub, me)["actions"]
    verify = {"oid": SHA256, "size": len(CONTENT)}
    answer = get_session().put(actions["upload"]["href"], content=sent)
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (400, reason)
    assert get_session().post(actions["verify"]["href"], json=verify, headers=me._build_hf_headers()).status_code == 404
    assert not linked(hub)
    assert list((hub.folder / "objects").iterdir()) == []
    assert get_session().put(actions["upload"]["href"], content=iter([CONTENT[:10], CONTENT[10:]])).status_code == 200
    assert get_session().post(actions["verify"]["href"], json=verify, headers=me._build_hf_headers()).status_code == 200
    wrong = verify | {"size": 1}
    assert get_session().post(actions["verify"]["href"], json=wrong, headers=me._build_hf_headers()).status_code == 422
    assert "actions" not in ask(hub, me)
    assert "another size" in ask(hub, me, size=1)["error"]["message"]


def test_parts_must_be_all_there_and_unchanged(hub: HubServer, me: Any) -> None:
    hub.options.multipart_above, hub.options.part_size = 5000, 3000
    upload = ask(hub, me)["actions"]["upload"]
    header = upload["header"]
    assert (header["chunk_size"], sorted(header)) == ("3000", ["1", "2", "3", "chunk_size"])
    parts = {str(number): CONTENT[3000 * (number - 1) : 3000 * number] for number in (1, 2, 3)}
    assert get_session().put(header["1"], content=parts["2"][:10]).status_code == 400
    etags = {name: get_session().put(header[name], content=parts[name]).headers["ETag"] for name in ("3", "1")}

    def complete(*names: str) -> int:
        listed = [{"partNumber": int(name), "etag": etags[name]} for name in names]
        return int(get_session().post(upload["href"], json={"oid": SHA256, "parts": listed}).status_code)

    etags["2"] = get_session().put(header["2"], content=bytes(3000)).headers["ETag"]
    assert complete("1", "3") == 400
    assert complete("1", "2", "3") == 400, "the second part is wrong, so is the whole"
    assert not linked(hub)
    etags["2"] = get_session().put(header["2"], content=parts["2"]).headers["ETag"]
    assert complete("1", "2", "3") == 200
    assert complete("1", "2", "3") == 200, "its answer may have been lost"
    assert linked(hub)
    me.create_commit("me/model", [CommitOperationAdd("a.bin", CONTENT)], commit_message="Add")
    assert hub.repo("me/model").read("a.bin") == CONTENT


def test_a_ticket_that_was_never_given(hub: HubServer) -> None:
    assert get_session().put(f"{hub.url}/uploads/000000000000000000000000", content=b"x").status_code == 403


def test_an_upload_needs_write_access(hub: HubServer, me: Any, api: Callable[..., Any]) -> None:
    with pytest.raises(HfHubHTTPError, match="403"):
        api("stranger").create_commit(
            "me/model", [CommitOperationAdd("a.bin", CONTENT)], commit_message="Add", create_pr=True
        )
    assert not linked(hub)


def test_a_merge_conflict(hub: HubServer, me: Any) -> None:
    hub.push("me/model", {"a": b"base"})
    me.create_commit("me/model", [CommitOperationAdd("a", b"theirs")], commit_message="Theirs", create_pr=True)
    head = hub.push("me/model", {"a": b"ours"})
    with pytest.raises(HfHubHTTPError, match="Conflict in a") as error:
        me.merge_pull_request("me/model", 1)
    assert error.value.response.status_code == 409
    assert hub.repo("me/model").head() == head


def test_visibility_and_another_name_are_on_record(hub: HubServer, me: Any) -> None:
    me.update_repo_settings("me/model", private=True, gated="manual")
    me.move_repo("me/model", "me/other")
    assert hub.repo("me/other").private
    assert me.model_info("me/other").gated == "manual"
    assert [(change.what, change.repo, change.private) for change in hub.journal] == [
        ("create", "me/model", False),
        ("ref", "me/model", False),
        ("settings", "me/model", True),
        ("create", "me/other", True),
    ]
