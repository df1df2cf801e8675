"""Batch files and sources for the tests."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ctxforge.batch import BatchOptions, BatchResult, prepare, run
from ctxforge.batch.executors import Ended, Executor, Handle
from ctxforge.batch.specs import ResourceSpec
from ctxforge.batch.task import Task, run_task
from tests.checkpoint.builders import build, tree


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def source(folder: Path, shards: int = 2, hidden: int = 8, seed: int = 0) -> Path:
    """A folder of random weights that can be converted."""
    build(folder, shards=shards, hidden=hidden, seed=seed)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"num_hidden_layers": 2 * shards, "head_dim": hidden // 2, "intermediate_size": 16, "vocab_size": 32}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "hidden_size": hidden}, indent=2) + "\n")
    return folder


def ran(file: Path, executor: Executor | None = None, **options: object) -> BatchResult:
    chosen = BatchOptions(**options)  # type: ignore[arg-type]
    return run(prepare(file, chosen), chosen, executor=executor)


def statuses(result: BatchResult) -> dict[str, str]:
    return {one.name: one.status for one in result.results}


def trees(folder: Path) -> dict[str, dict[str, bytes]]:
    """The outputs in a folder, by name; what is hidden, the journal and the logs left out."""
    found = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return {path.name: tree(path) for path in found if (path / "config.json").is_file()}


class Here:
    """An executor that runs every task at once in this process, heavy ones too."""

    elsewhere = False

    def submit(self, task: Task) -> Handle:
        return Ended(task, run_task(task))

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        del seconds
        return list(handles)

    def cancel(self, handles: Sequence[Handle]) -> None:
        pass

    def resources(self, wanted: ResourceSpec, running: Sequence[ResourceSpec]) -> bool:
        del wanted
        return not running

    def close(self) -> None:
        pass
