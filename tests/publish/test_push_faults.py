"""200 faults on every route that publishing uses: main is whole or as before at any time, and each rerun completes."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ctxforge import pipeline, publish
from ctxforge.api import _recipe
from ctxforge.errors import CtxforgeError
from ctxforge.publish.connection import Connection
from tests.hub_server import Fault, HubServer
from tests.publish.conftest import Connect
from tests.publish.sources import contents, ones

FAULTS = 200
ROUTES = (
    ("GET", r"/api/whoami-v2"),
    ("GET", r"/api/models/org/source"),
    ("GET", r"/api/models/me/"),
    ("GET", r"/tree/"),
    ("GET", r"/resolve/"),
    ("HEAD", r"/resolve/"),
    ("POST", r"/api/validate-yaml"),
    ("POST", r"/api/repos/create"),
    ("POST", r"/preupload/"),
    ("POST", r"/paths-info/"),
    ("POST", r"/lfs-files/duplicate"),
    ("POST", r"/info/lfs/objects/batch"),
    ("PUT", r""),
    ("POST", r"verify"),
    ("POST", r"/commit/"),
    ("POST", r"/commit/"),
    (None, r""),
)


def fault(draw: random.Random, route: tuple[str | None, str]) -> Fault:
    """A fault of a random kind on a route; one in four stays until it is cleared."""
    method, pattern = route
    where: dict[str, Any] = {"method": method, "path_pattern": pattern, "nth": draw.choice((1, 1, 2, 3))}
    where["times"] = draw.choice((1, 1, 2, None))
    kind = draw.choice(("before", "during", "after", "status", "status", "status", "slow", "truncate"))
    if kind in ("before", "during", "after"):
        return Fault("drop", when=kind, **where)  # type: ignore[arg-type]
    if kind == "status":
        status = draw.choice((401, 403, 409, 412, 429, 500, 503))
        headers = {"Retry-After": "7"} if status == 429 else {}
        return Fault("status", status=status, headers=headers, when=draw.choice(("before", "after")), **where)
    if kind == "slow":
        return Fault("slow", seconds=0.002, **where)
    return Fault("truncate", **where)


class Case:
    """Something to publish, and what of it must be there in the end."""

    def __init__(self, name: str, hub: HubServer, work: Any) -> None:
        self.name, self.hub, self.work = name, hub, work
        work(publish.PushOptions(repo="me/right-" + name))
        self.right = self.content(hub.repo("me/right-" + name).files())

    @staticmethod
    def content(files: Any) -> dict[str, str]:
        """By path, without what the Hub writes itself; of the card and its digest, only that they are."""
        named = ("README.md", "ctxforge.json")
        return {name: one.sha256 * (name not in named) for name, one in files.items() if name != ".gitattributes"}

    def check_whole(self, repo: str) -> None:
        """Every state that main ever showed was empty, or all of it."""
        if not self.hub.has_repo(repo):
            return
        for state in self.hub.states(repo):
            found = self.content(state)
            assert found in ({}, self.right), f"{repo} showed {sorted(found)}"


@pytest.fixture
def cases(hub: HubServer, connected: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Case]:
    source = ones(tmp_path / "source")
    hub.add_repo("org/source", contents(source))
    connection: Connection = connected("me")
    monkeypatch.setenv("HF_TOKEN", str(connection.api.token))

    def recipe(method: str, temperature: float | None = None) -> Any:
        return _recipe("org/source", None, method, None, "4x", None, temperature, None, None, "widest")

    config_only = pipeline.plan_to_publish(recipe("yarn"))
    folded = pipeline.plan_to_publish(recipe("pi", 1.2))
    assert folded.edits.tensors
    assert not config_only.edits.tensors
    folder = pipeline.extend(recipe("yarn"), pipeline.OutputOptions(out=tmp_path / "folder")).out

    def converted(conversion: Any) -> Any:
        return lambda options: publish.publish(conversion, options, connection=connection)

    return [
        Case("copied", hub, converted(config_only)),
        Case("folded", hub, converted(folded)),
        Case("folder", hub, lambda options: publish.push(folder, options, connection=connection)),
    ]


def failure(case: Case, options: publish.PushOptions) -> str:
    """The name of the error that publishing ended with; empty where it went on. Anything but ours is a failed test."""
    try:
        case.work(options)
    except CtxforgeError as error:
        if "hf_" in error.cause + error.remedy:
            raise
        return type(error).__name__
    return ""


def test_two_hundred_faults(hub: HubServer, cases: list[Case], tmp_path: Path) -> None:
    draw = random.Random(8)
    outcomes: Counter[str] = Counter()
    number = 0
    before = len(hub.fired)
    while len(hub.fired) - before < FAULTS:
        case = cases[number % len(cases)]
        repo = f"me/{case.name}-{number}"
        options = publish.PushOptions(repo=repo)
        number += 1
        for cache in ("huggingface", "cache"):  # so that the routes of reading are asked each time
            shutil.rmtree(tmp_path / cache, ignore_errors=True)
        hub.inject(*(fault(draw, draw.choice(ROUTES)) for _ in range(4)))
        outcomes[failure(case, options)] += 1
        case.check_whole(repo)
        hub.clear_faults()
        case.work(options)
        case.check_whole(repo)
        assert case.content(hub.repo(repo).files()) == case.right
        assert len(hub.repo(repo).commits()) == 2
    assert set(outcomes) == {"", "HubError"}
    assert min(outcomes.values()) > 10
    assert {fired.fault.kind for fired in hub.fired} == {"drop", "status", "slow", "truncate"}
    for method, pattern in ROUTES:
        met = [one for one in hub.fired if method in (None, one.method) and re.search(pattern, one.path)]
        assert met, (method, pattern)
    # The control: half of it on main would have been seen.
    half = {name: f"{name}".encode() for name in list(cases[0].right)[:2]}
    hub.push("me/copied-0", half)
    with pytest.raises(AssertionError, match="me/copied-0 showed"):
        cases[0].check_whole("me/copied-0")


@pytest.mark.parametrize("way", ["pull request", "branch"])
def test_faults_on_the_way_to_a_branch_or_a_pull_request(
    hub: HubServer, cases: list[Case], tmp_path: Path, way: str
) -> None:
    """Main stays as it is, and in the end there is one pull request, or one commit on the branch."""
    draw = random.Random(9)
    number = 0
    before = len(hub.fired)
    while len(hub.fired) - before < FAULTS // 4:
        case = cases[number % len(cases)]
        repo = f"me/{case.name}-{number}"
        number += 1
        hub.add_repo(repo, {"README.md": b"as it was"})
        options = publish.PushOptions(
            repo=repo, branch="long" if way == "branch" else None, create_pr=way == "pull request"
        )
        shutil.rmtree(tmp_path / "huggingface", ignore_errors=True)
        hub.inject(*(fault(draw, draw.choice((*ROUTES, ("GET", "/discussions")))) for _ in range(4)))
        failure(case, options)
        hub.clear_faults()
        case.work(options)
        found = hub.repo(repo)
        assert len(hub.states(repo)) == 1
        if way == "branch":
            assert case.content(found.files("long")) == case.right
            assert len(found.commits("long")) == 2
        else:
            (one,) = found.pull_requests
            assert case.content(found.files(f"refs/pr/{one.number}")) == case.right
