"""Each fault once, with what the server's state must be after it and after a second try."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from tests.hub_server import Fault, HubServer

WEIGHTS = b"\0weights" * 100_000


def upload(client: Any) -> Any:
    """A shard and a small file in one commit."""
    operations = [CommitOperationAdd("model.safetensors", WEIGHTS), CommitOperationAdd("config.json", b"{}")]
    return client.create_commit("me/model", operations, commit_message="Add")


def connection_errors() -> tuple[type[Exception], ...]:
    import httpx2

    return (httpx2.TransportError,)


@pytest.fixture
def me(hub: HubServer, api: Callable[..., Any]) -> Any:
    client = api("me")
    client.create_repo("me/model")
    hub.reset()
    return client


def test_a_connection_dropped_before_the_commit(hub: HubServer, me: Any) -> None:
    hub.inject(Fault("drop", method="POST", path_pattern="/commit/main"))
    with pytest.raises(connection_errors()):
        upload(me)
    assert [len(state) for state in hub.states("me/model")] == [1]
    assert [(fired.method, fired.path) for fired in hub.fired] == [("POST", "/api/models/me/model/commit/main")]
    upload(me)
    assert [len(state) for state in hub.states("me/model")] == [1, 3]


def test_a_connection_dropped_after_the_commit(hub: HubServer, me: Any) -> None:
    """The client can't tell it from the other, and main has moved."""
    hub.inject(Fault("drop", method="POST", path_pattern="/commit/main", when="after"))
    with pytest.raises(connection_errors()):
        upload(me)
    assert [len(state) for state in hub.states("me/model")] == [1, 3]
    head = hub.repo("me/model").head()
    upload(me)  # nothing is left to do
    assert hub.repo("me/model").head() == head


def test_an_upload_that_breaks_in_the_middle_leaves_no_object(hub: HubServer, me: Any) -> None:
    hub.inject(Fault("drop", method="PUT", when="during"))
    upload(me)  # huggingface_hub tries again
    broken, whole = (request for request in hub.requests if request.method == "PUT")
    assert (broken.status, broken.received) == (None, len(WEIGHTS) // 2)
    assert (whole.status, whole.received) == (200, len(WEIGHTS))
    assert hub.repo("me/model").read("model.safetensors") == WEIGHTS
    assert len(list((hub.folder / "objects").iterdir())) == 1


@pytest.mark.parametrize("status", [401, 403, 409, 418])
def test_a_status_that_nobody_retries(hub: HubServer, me: Any, status: int) -> None:
    hub.inject(Fault("status", path_pattern="/commit/", status=status, message="Not today", headers={"X-Test": "1"}))
    with pytest.raises(HfHubHTTPError, match="Not today") as error:
        upload(me)
    assert (error.value.response.status_code, error.value.response.headers["X-Test"]) == (status, "1")
    assert [len(state) for state in hub.states("me/model")] == [1]
    upload(me)
    assert [len(state) for state in hub.states("me/model")] == [1, 3]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_status_that_huggingface_hub_retries(hub: HubServer, me: Any, status: int) -> None:
    hub.inject(Fault("status", path_pattern="/preupload/", status=status, times=2, headers={"Retry-After": "1"}))
    upload(me)
    tries = [request.status for request in hub.requests if "/preupload/" in request.path]
    assert tries == [status, status, 200]


def test_a_server_error_after_the_effect(hub: HubServer, me: Any) -> None:
    """Seen on the Hub itself: 500, and the commit stands (huggingface/datasets#7708)."""
    hub.inject(Fault("status", path_pattern="/commit/", status=500, when="after"))
    with pytest.raises(HfHubHTTPError):
        upload(me)
    assert [len(state) for state in hub.states("me/model")] == [1, 3]


def test_the_third_request_that_matches_and_the_one_after(hub: HubServer) -> None:
    hub.inject(Fault("status", path_pattern=r"whoami.*\?n=", nth=3, times=2, status=503))
    token = hub.account("me")
    urls = [f"{hub.url}/api/whoami-v2", *(f"{hub.url}/api/whoami-v2?n={number}" for number in range(5))]
    got = [get_session().get(url, headers={"Authorization": f"Bearer {token}"}).status_code for url in urls]
    assert got == [200, 200, 200, 503, 503, 200]
    hub.inject(Fault("status", times=None, status=500))
    assert [get_session().get(hub.url).status_code for _ in range(3)] == [500] * 3
    hub.clear_faults()
    assert get_session().get(f"{hub.url}/api/whoami-v2").status_code == 401


def test_a_slow_answer(hub: HubServer) -> None:
    hub.inject(Fault("slow", seconds=0.3))
    start = time.monotonic()
    get_session().get(f"{hub.url}/api/whoami-v2")
    assert time.monotonic() - start >= 0.3
    hub.inject(Fault("slow", seconds=5))
    with pytest.raises(connection_errors()):
        get_session().get(f"{hub.url}/api/whoami-v2", timeout=0.1)


def test_a_client_that_gives_up_waiting_cannot_tell_what_happened(hub: HubServer, me: Any) -> None:
    """The commit stands before the wait; a client that timed out and looks finds it."""
    url, headers = f"{hub.url}/api/models/me/model/commit/main", me._build_hf_headers()
    lines = (
        '{"key": "header", "value": {"summary": "Add"}}\n'
        '{"key": "file", "value": {"path": "a", "content": "YQ==", "encoding": "base64"}}\n'
    )
    hub.inject(Fault("slow", path_pattern="/commit/", seconds=5, when="after"))
    with pytest.raises(connection_errors()):
        get_session().post(url, content=lines, headers=headers, timeout=0.5)
    assert [sorted(state) for state in hub.states("me/model")] == [[".gitattributes"], [".gitattributes", "a"]]
    assert hub.repo("me/model").read("a") == b"a"


def test_a_truncated_body(hub: HubServer, me: Any) -> None:
    """Content-Length says more than comes; huggingface_hub tries again (from 0: it writes pieces of 10 MB)."""
    upload(me)
    hub.reset()
    hub.inject(Fault("truncate", method="GET", path_pattern="/resolve/", keep=1000))
    path = me.hf_hub_download("me/model", "model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    gets = [(request.sent, request.range) for request in hub.requests if request.method == "GET"]
    assert gets == [(1000, None), (len(WEIGHTS), None)]


def test_lies_about_sizes(hub: HubServer, me: Any) -> None:
    upload(me)
    hub.inject(Fault("lie", path_pattern="/tree/", about="tree", files="safetensors", claims=12, times=None))
    sizes = {entry.path: entry.size for entry in me.list_repo_tree("me/model")}
    assert (sizes["model.safetensors"], sizes["config.json"]) == (12, 2)
    hub.clear_faults()
    hub.inject(Fault("lie", method="HEAD", about="linked", claims=99))
    url = f"{hub.url}/me/model/resolve/main/model.safetensors"
    from huggingface_hub import get_hf_file_metadata

    assert get_hf_file_metadata(url, token=me.token).size == 99
    assert get_hf_file_metadata(url, token=me.token).size == len(WEIGHTS)
    hub.inject(Fault("lie", method="GET", path_pattern="/resolve/", about="length"))
    with pytest.raises(connection_errors()):  # 1,000 bytes more were announced than the file has
        get_session().get(url)
    hub.inject(Fault("lie", method="GET", path_pattern="/resolve/", about="length", claims=10))
    with pytest.raises(OSError, match="Consistency check failed"):
        me.hf_hub_download("me/model", "model.safetensors")
    hub.inject(Fault("lie", path_pattern="/api/models/me/model", times=None))
    siblings = me.model_info("me/model", files_metadata=True).siblings
    assert {file.rfilename: file.size for file in siblings}["config.json"] == 1002


def test_somebody_commits_in_between(hub: HubServer, me: Any) -> None:
    parent = hub.repo("me/model").head()
    hub.inject(Fault("act", path_pattern="/commit/main", action=lambda: hub.push("me/model", {"theirs": b"x"})))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        me.create_commit("me/model", [CommitOperationAdd("a", b"a")], commit_message="Add", parent_commit=parent)
    assert [sorted(state)[-1] for state in hub.states("me/model")] == [".gitattributes", "theirs"]


def test_a_commit_is_whole_even_when_one_operation_is_wrong(hub: HubServer, me: Any) -> None:
    from huggingface_hub import CommitOperationDelete

    operations = [CommitOperationAdd("a", b"a"), CommitOperationDelete("nothing")]
    with pytest.raises(HfHubHTTPError, match="doesn't exist"):
        me.create_commit("me/model", operations, commit_message="Add")
    assert [len(state) for state in hub.states("me/model")] == [1]
    with pytest.raises(HfHubHTTPError, match="a folder of the same name"):
        me.create_commit(
            "me/model", [CommitOperationAdd("a", b"a"), CommitOperationAdd("a/b", b"b")], commit_message="Add"
        )
    assert [len(state) for state in hub.states("me/model")] == [1]


def test_commits_at_once_all_land_one_after_the_other(hub: HubServer, me: Any) -> None:
    """Twenty writers without parent_commit: twenty commits, each on top of the one before."""
    from concurrent.futures import ThreadPoolExecutor

    def write(number: int) -> None:
        me.create_commit("me/model", [CommitOperationAdd(f"f{number}", b"x")], commit_message=f"Add {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(20)))
    assert [len(state) for state in hub.states("me/model")] == list(range(1, 22))
    assert len(hub.repo("me/model").commits()) == 21
