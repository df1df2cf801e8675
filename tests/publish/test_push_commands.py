"""The commands as scripts use them: what is printed where, exit codes, JSON, and a process killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import Fault, HubServer
from tests.publish.conftest import run_ctxforge
from tests.publish.sources import contents, ones


class Desk:
    """A source on the Hub, an account, and the commands of that account."""

    def __init__(self, base: Path, hub: HubServer) -> None:
        self.hub, self.home = hub, base / "home"
        self.local = ones(base / "source")
        self.token = hub.account("me")
        hub.add_repo("org/source", contents(self.local))

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = run_ctxforge(self.hub, self.token, self.home, *words, **more)
        assert self.token not in done.stdout + done.stderr
        return done


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with HubServer(tmp_path / "hub") as hub:
        yield Desk(tmp_path, hub)


YARN = ("extend", "org/source", "--method", "yarn", "--to", "16k")


def test_plan_first_then_a_folder_then_push(desk: Desk) -> None:
    planned = desk("plan", *YARN[1:], "--push", "--json")
    assert planned.returncode == 0, planned.stderr
    push = json.loads(planned.stdout)["push"]
    assert push["repo"] == "me/source-yarn-16k"
    assert push["creates"]
    assert {one["route"] for one in push["files"]} == {"copied", "sent", "passed"}
    assert not desk.hub.has_repo("me/source-yarn-16k")

    both = desk(*YARN, "--out", "here", "--push", "both", "--json")
    assert both.returncode == 0, both.stderr
    answer = json.loads(both.stdout)
    assert (answer["repo"], answer["changed"], answer["status"]) == ("me/both", True, "ok")
    assert answer["url"] == f"{desk.hub.url}/me/both/commit/{answer['commit']}"
    assert (desk.home / "here" / "config.json").is_file()

    dry = desk("push", "here", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "copied on the server" in dry.stdout
    assert not desk.hub.has_repo("me/source-yarn-16k")
    # The same content as what is there already, hence no second commit.
    again = desk("push", "here", "me/both")
    assert again.stdout == answer["url"] + "\n"
    assert "held all of it already" in again.stderr
    assert len(desk.hub.repo("me/both").commits()) == 2


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((*YARN, "--private"), 2, "--push was not given"),
        ((*YARN, "--push", "x", "--overwrite"), 2, "--overwrite is of a folder"),
        ((*YARN, "--push", "org/x"), 4, "no organisation that you may write in"),
    ],
)
def test_refusals_have_two_lines_and_a_code(desk: Desk, words: tuple[str, ...], code: int, told: str) -> None:
    done = desk(*words)
    assert done.returncode == code
    assert told in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()[-2:]] == ["Error", "Hint"]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("blow", "where"), [(signal.SIGKILL, "PUT /uploads"), (signal.SIGTERM, "POST /commit/")], ids=["kill", "term"]
)
def test_killed_in_the_middle_and_run_again(desk: Desk, blow: signal.Signals, where: str) -> None:
    method, pattern = where.split()
    words = ("extend", "org/source", "--method", "pi", "--temperature", "1.2", "--to", "16k", "--push", "x")
    desk.home.mkdir()
    environment: dict[str, Any] = {
        **desk.hub.environment(desk.token, desk.home),
        "CTXFORGE_CACHE": str(desk.home / "cache"),
    }
    desk.hub.inject(Fault("slow", method, pattern, seconds=30, times=None))
    started = subprocess.Popen(
        [sys.executable, "-m", "ctxforge", *words], env=environment, cwd=desk.home, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not desk.hub.fired and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(started.pid, blow)
    assert started.wait(60) in (-blow, 130)
    desk.hub.clear_faults()
    assert len(desk.hub.states("me/x")) == 1
    done = desk(*words)
    assert done.returncode == 0, done.stderr
    assert len(desk.hub.states("me/x")) == 2
    assert not list((desk.home / "cache").rglob("*.safetensors"))
