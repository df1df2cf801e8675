"""Token caches under fire: two processes at once, SIGKILL at any moment, a full disk, data that changes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ctxforge.calibrate.data import TokenCache, open_or_build, parse_source
from ctxforge.errors import ResourceError
from tests.calibrate.data_builders import stretches, tokenizer, write_jsonl

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("data_child.py")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = [f"{i} {text}" for i in range(20) for text in stretches(100, 1500)]  # 3 MB
    return write_jsonl(tmp_path / "data.jsonl", texts)


def start(*arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(CHILD), *map(str, arguments)], env=env, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != "digests") if root.exists() else []


def test_two_processes_at_once_make_one_cache(data: Path, own_cache: Path) -> None:
    children = [start(data), start(data)]
    for child in children:
        ready(child)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    folders, tokens, work = zip(*(out.split(" ", 2) for out, _ in said), strict=True)
    assert len(set(folders)) == len(set(tokens)) == 1
    assert left(own_cache) == [folders[0]]
    assert sum("tokenising" in one for one in work) == 1  # the other one waited, or came after it
    TokenCache.open(own_cache / folders[0]).check()


def test_a_kill_leaves_nothing_that_could_be_taken_for_whole(data: Path, own_cache: Path) -> None:
    whole = open_or_build(parse_source(str(data)), tokenizer())
    good = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    whole.folder.rename(own_cache.parent / "kept")
    midway = 0
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            open_or_build(parse_source(str(data)), tokenizer())
            os._exit(0)
        wait_for_bytes(own_cache, len(good["tokens.bin"]) * attempt // 12, child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if whole.folder.exists():
            assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == good
            whole.folder.rename(own_cache.parent / f"kept{attempt}")
        midway += any(name.startswith(f".{whole.folder.name}.ctxforge-") for name in left(own_cache))
    assert midway >= 3, f"{midway} of 12 kills landed while files were written"
    again = open_or_build(parse_source(str(data)), tokenizer())
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == good
    assert left(own_cache) == [whole.folder.name]  # what the killed ones left is gone


def wait_for_bytes(root: Path, count: int, child: int) -> None:
    """Until the child has written so many bytes of tokens, or has ended; an ended child is left to be reaped."""
    while True:
        with suppress(OSError):  # a file that is renamed while it is looked at
            if any(path.stat().st_size >= count for path in root.glob(f".*ctxforge-{child}-*/tokens.bin")):
                return
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def test_a_full_disk_is_said_and_leaves_nothing(data: Path, own_cache: Path) -> None:
    child = start(data, 500_000)
    ready(child)
    out, err = child.communicate("\n", timeout=300)
    assert child.returncode == 1, out
    assert err.startswith("ResourceError: Out of disk space in "), err
    assert "Traceback" not in err
    assert left(own_cache) == []


def test_data_that_changes_while_it_is_read(data: Path, own_cache: Path) -> None:
    def touch(what: str, _done: int, _total: int) -> None:
        if what == "tokenising":
            with data.open("a") as file:
                file.write('{"text": "more"}\n')

    with pytest.raises(ResourceError, match="was changed while it was read"):
        open_or_build(parse_source(str(data)), tokenizer(), progress=touch)
    assert left(own_cache) == []
