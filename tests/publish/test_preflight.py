"""What is refused before any work: each with its reason, nothing created and nothing sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctxforge.errors import CtxforgeError, HubError, ResourceError, UsageError
from ctxforge.publish import PushOptions, plan_publish, publish, push
from ctxforge.publish.connection import connect
from ctxforge.publish.target import default_name, parse_target
from tests.hub_server import Fault, HubServer
from tests.publish.conftest import Connect
from tests.publish.conversions import SOURCE, Bench, make_bench
from tests.publish.sources import CARD, contents, ones


@pytest.fixture
def bench(hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return make_bench(hub, connected, monkeypatch, tmp_path)


def refusal(bench: Bench, kind: type[CtxforgeError], action: Callable[[], Any]) -> str:
    """The cause and remedy of a refusal that changed nothing."""
    bench.hub.reset()
    with pytest.raises(kind) as caught:
        action()
    assert bench.wrote() == []
    return f"{caught.value.cause} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("account", "repo", "told"),
    [
        ({"role": "read"}, "new", "can only read"),
        ({"role": "expired"}, "new", "invalid or expired"),
        ({"scopes": {"somebody": ["repo.content.read"]}}, "new", "no write permission on somebody"),
        ({"scopes": {"somebody/one": ["repo.write"]}}, "somebody/other", "no write permission"),
        ({}, "org/new", "no organisation that you may write in"),
        ({"orgs": {"org": "read"}}, "org/new", "no organisation that you may write in"),
    ],
)
def test_tokens_that_may_not_write(
    bench: Bench, connected: Connect, account: dict[str, Any], repo: str, told: str
) -> None:
    connection = connected("somebody", **account)
    conversion = bench.conversion()
    said = refusal(bench, HubError, lambda: publish(conversion, PushOptions(repo=repo), connection=connection))
    assert told in said
    assert str(connection.api.token) not in said


@pytest.mark.parametrize(
    ("account", "repo"),
    [
        ({"scopes": {"somebody": ["repo.write"]}}, "new"),
        ({"scopes": {"org": ["repo.content.read", "repo.write"]}, "orgs": ["org"]}, "org/new"),
        ({"orgs": {"org": "contributor"}}, "org/new"),
    ],
)
def test_tokens_that_may(bench: Bench, connected: Connect, account: dict[str, Any], repo: str) -> None:
    done = publish(bench.conversion(), PushOptions(repo=repo), connection=connected("somebody", **account))
    assert done.repo == (repo if "/" in repo else f"somebody/{repo}")


def test_no_token(bench: Bench, connected: Connect) -> None:
    conversion = bench.conversion()
    anonymous = connected(None)
    assert "no token" in refusal(bench, HubError, lambda: publish(conversion, PushOptions(), connection=anonymous))


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        connect()


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a/b/c",
        "/x",
        "me/",
        "me/x@main",
        "datasets/me/x",
        "me/x.git",
        "me/a--b",
        "me/a..b",
        "me/-x",
        "ü",
        "x" * 97,
    ],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        parse_target(name)


def test_names() -> None:
    assert parse_target("me/x") == parse_target("https://huggingface.co/me/x/") == parse_target("hf://me/x") == "me/x"
    record: dict[str, Any] = {
        "source": {"name": "meta-llama/Llama-2-7b-hf@abc"},
        "plan": {"method": "yarn", "target_length": 65536},
    }
    assert default_name(record) == "Llama-2-7b-hf-yarn-64k"
    record["plan"]["method"] = "yarn+resonance"
    record["recipe"] = {"attach": {"name": "lm-infinite"}}
    assert default_name(record) == "Llama-2-7b-hf-yarn-resonance-lm-infinite-64k"
    with pytest.raises(UsageError, match="no name"):
        default_name({})


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repository_of_another_type(bench: Bench, kind: str) -> None:
    bench.hub.add_repo("me/data", {"x.csv": b"1"}, repo_type=kind)
    conversion = bench.conversion()
    options = PushOptions(repo="me/data")
    assert f"is a {kind}" in refusal(bench, HubError, lambda: publish(conversion, options, connection=bench.connection))
    publish(conversion, PushOptions(repo="me/data", yes=True), connection=bench.connection)
    assert "config.json" in bench.hub.repo("me/data").files()


def test_a_name_that_is_taken(bench: Bench) -> None:
    taken = {"model.safetensors": b"\0" * 100, "config.json": b"{}", "notes.txt": b"mine"}
    bench.hub.add_repo("me/taken", taken)
    conversion = bench.conversion()
    options = PushOptions(repo="me/taken")
    said = refusal(bench, HubError, lambda: publish(conversion, options, connection=bench.connection))
    assert "something that ctxforge did not put there" in said
    publish(conversion, PushOptions(repo="me/taken", yes=True), connection=bench.connection)
    files = bench.hub.repo("me/taken").files()
    # The other set of weights would contradict ours, so it goes in the same commit; the notes are nobody's business.
    assert "model.safetensors" not in files
    assert "notes.txt" in files
    assert len(bench.hub.repo("me/taken").commits()) == 2


def test_the_source_itself(bench: Bench, connected: Connect) -> None:
    owner = connected("org")
    conversion = bench.conversion()
    options = PushOptions(repo=SOURCE)
    assert "is the source itself" in refusal(bench, UsageError, lambda: publish(conversion, options, connection=owner))


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_no_public_copy_of_what_is_not_public(
    hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str], kind: str
) -> None:
    bench = make_bench(hub, connected, monkeypatch, tmp_path, **{kind: True}, granted=["org"])
    owner = connected("org")
    monkeypatch.setenv("HF_TOKEN", str(owner.api.token))
    conversion = bench.conversion()
    for private in (None, False):
        options = PushOptions(repo="copy", private=private)
        told = refusal(bench, UsageError, lambda: publish(conversion, options, connection=owner))  # noqa: B023
        assert f"org/source is {kind}" in told
    publish(conversion, PushOptions(repo="kept", private=True), connection=owner)
    assert hub.repo("org/kept").private
    agreed = plan_publish(conversion, PushOptions(repo="copy", yes=True), connection=owner)
    assert any("public copy" in line for line in agreed.plan.warnings)
    # Into what is private already no question is asked; from private to public by an option, one is.
    publish(conversion, PushOptions(repo="kept"), connection=owner)
    assert "exists and is private" in refusal(
        bench, UsageError, lambda: publish(conversion, PushOptions(repo="kept", private=False), connection=owner)
    )


def test_a_server_that_lies_about_sizes(bench: Bench) -> None:
    conversion = bench.conversion()
    for about in (r"\.safetensors", r"tokenizer_config"):
        bench.hub.inject(Fault("lie", about="tree", files=about, path_pattern="/tree/", times=None))
        said = refusal(bench, HubError, lambda: publish(conversion, PushOptions(), connection=bench.connection))
        assert "contradicts itself" in said
        bench.hub.clear_faults()


def test_a_download_that_is_not_what_was_listed(bench: Bench) -> None:
    """The listing and the headers agree, and the bytes are others: the fold must not be made of them."""
    conversion = bench.conversion("pi", 1.2)
    shard = next(name for name in bench.hub.repo(SOURCE).files() if name.endswith(".safetensors"))
    stored = bench.local / shard  # which the server reads
    right = stored.read_bytes()
    stored.write_bytes(right[:-2] + b"\0\0")
    assert bench.hub.repo(SOURCE).read(shard) != right
    with pytest.raises(HubError, match="are not the"):
        publish(conversion, PushOptions(repo="x"), connection=bench.connection)
    assert len(bench.hub.states("me/x")) == 1


def test_a_folder_that_fails_its_check(bench: Bench) -> None:
    folder = bench.folder()
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    options = PushOptions(repo="x")
    said = refusal(bench, UsageError, lambda: push(folder, options, connection=bench.connection))
    assert "fails the check tokenizer" in said
    push(folder, PushOptions(repo="x", force=True), connection=bench.connection)
    # The provenance goes on saying what it was: whoever checks the published folder sees the change.
    assert bench.hub.repo("me/x").read("tokenizer_config.json") == b'{"model_max_length": 8}'


def test_no_folder(bench: Bench, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", bench.local / "config.json"):
        with pytest.raises(UsageError, match="no folder"):
            push(path, PushOptions(repo="x"), connection=bench.connection)


def test_a_card_of_ones_own(bench: Bench) -> None:
    folder = bench.folder()
    options = PushOptions(repo="x")
    own = "---\nlicense: mit\n---\nMy words.\n"
    (folder / "README.md").write_text("---\nlicense: [\n---\nMy words.\n")
    assert "refuses the card's metadata (it is your own README.md)" in refusal(
        bench, UsageError, lambda: push(folder, options, connection=bench.connection)
    )
    (folder / "README.md").write_text(own.replace("mit", "apache-2.0"))
    assert "licence is mit" in refusal(bench, UsageError, lambda: push(folder, options, connection=bench.connection))
    (folder / "README.md").write_text(own)
    push(folder, options, connection=bench.connection)
    assert bench.hub.repo("me/x").read("README.md").decode() == own


def test_a_source_without_licence_is_told(
    hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connection = connected("me")
    monkeypatch.setenv("HF_TOKEN", str(connection.api.token))
    local = ones(tmp_path / "bare")
    (local / "README.md").write_bytes(CARD.replace(b"license: mit\n", b""))
    hub.add_repo("org/bare", contents(local))
    bench = Bench(hub, connection, tmp_path)
    from ctxforge import pipeline

    conversion = pipeline.plan_to_publish(bench.recipe(source="org/bare"))
    plan = plan_publish(conversion, PushOptions(), connection=connection).plan
    assert any("names no licence" in line for line in plan.warnings)


def test_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxforge.publish import space

    conversion = bench.conversion("pi", 1.2)
    needed = plan_publish(conversion, PushOptions(), connection=bench.connection).plan.disk
    shards = [one.size for name, one in bench.hub.repo(SOURCE).files().items() if name.endswith(".safetensors")]
    assert needed == max(shards)
    monkeypatch.setattr(space, "free_bytes", lambda _folder: needed - 1)
    said = refusal(bench, ResourceError, lambda: publish(conversion, PushOptions(), connection=bench.connection))
    assert "CTXFORGE_CACHE" in said
    publish(bench.conversion(), PushOptions(), connection=bench.connection)  # config-only needs none
