"""The large files of a publication: handed over one at a time, by the route that each has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxforge.checkpoint import human_bytes
from ctxforge.publish.additions import Additions
from ctxforge.publish.commit import CopyRefusedError
from ctxforge.publish.connection import Connection
from ctxforge.publish.files import Data, OnDisk, Rewritten, Wanted
from ctxforge.publish.memory import Remembered, recall
from ctxforge.publish.publication import Results
from ctxforge.publish.repository import Repository
from ctxforge.publish.routes import MEANINGS, Refused, Step
from ctxforge.publish.shards import fetched, rewritten, work_folder, working
from ctxforge.publish.space import needed_space, refuse_without_space
from ctxforge.publish.steps import plan_steps

_LARGE = ("uploaded", "fetched", "rewritten")


@dataclass
class Sending:
    """What was given to the Hub for one commit, and what it would not copy."""

    connection: Connection
    source: Repository | None
    target: Repository
    revision: str
    proposing: bool
    refused: Refused = field(default_factory=Refused)
    additions: Additions = field(init=False)

    def __post_init__(self) -> None:
        self.additions = Additions(self.connection, self.target.repo, self.revision, self.proposing)

    def large(self, wanted: Sequence[Wanted], results: Results) -> Results:
        """Hand over what doesn't travel in the commit; gives the digests of what was rewritten.

        Raises:
            CtxforgeError: a file can't be had, edited or handed over.
        """
        steps = plan_steps(tuple(wanted), self.source, self.target, results, self.refused)
        todo = [step for step in steps if step.route in _LARGE and step.wanted.path not in self.additions.made]
        if not todo:
            return results
        local = [step for step in todo if step.route == "uploaded"]
        if local:
            self._local(local)
        heavy = [step for step in todo if step.route != "uploaded"]
        made = dict(results.sha256)
        tensors = dict(results.tensors)
        with ExitStack() as stack:
            folder: Path | None = None
            for number, step in enumerate(heavy, 1):
                self.connection.tell(
                    f"{step.wanted.path}: {human_bytes(step.wanted.size)}, {MEANINGS[step.route]}"
                    f" ({number} of {len(heavy)})"
                )
                memory = recall(step.wanted) if step.route == "rewritten" else None
                if memory is None or not self.additions.known(step.wanted.path, memory):
                    if folder is None:
                        refuse_without_space(work_folder(self.target.repo), needed_space(heavy))
                        folder = stack.enter_context(working(work_folder(self.target.repo)))
                    memory = self._one(step, folder)
                if memory is not None:
                    made[step.wanted.path] = memory.sha256
                    tensors |= memory.tensors
        return Results(made, tensors)

    def _local(self, steps: Sequence[Step]) -> None:
        files = []
        for step in steps:
            assert isinstance(step.wanted.contents, OnDisk)
            files.append((step.wanted.path, step.wanted.contents))
        self.additions.from_disk(files)

    def _one(self, step: Step, folder: Path) -> Remembered | None:
        wanted = step.wanted
        if not isinstance(wanted.contents, Rewritten):
            assert self.source is not None
            with fetched(self.connection, self.source, wanted, folder) as disk:
                self.additions.from_disk([(wanted.path, disk)])
            return None
        with rewritten(self.connection, self.source, wanted, folder) as (path, found):
            disk = OnDisk(path, found.size)
            self.additions.from_disk([(wanted.path, disk)])
        return found

    def give_up_copying(self, steps: Sequence[Step], refused: CopyRefusedError) -> None:
        """Take another route for the files that the server would not copy."""
        paths = {
            step.wanted.path
            for step in steps
            if step.copy is not None and (not refused.digests or step.copy.sha256 in refused.digests)
        }
        paths = paths or {step.wanted.path for step in steps if step.copy is not None}
        self.refused = Refused(self.refused.paths | paths, refused.reason)
        self.connection.tell(f"{refused.reason}: {len(paths)} files are uploaded instead")

    def operations(self, steps: Sequence[Step], deletes: Sequence[str]) -> list[Any]:
        """The operations of the commit; small files are handed over here."""
        from huggingface_hub import CommitOperationCopy, CommitOperationDelete

        self.additions.small([step.wanted for step in steps if step.route == "sent"])
        operations: list[Any] = [CommitOperationDelete(path, is_folder=False) for path in deletes]
        for step in steps:
            path = step.wanted.path
            if step.route == "copied":
                assert step.copy is not None
                assert self.source is not None
                across = self.source.repo != self.target.repo
                operations.append(
                    CommitOperationCopy(
                        src_path_in_repo=step.copy.path,
                        path_in_repo=path,
                        src_revision=self.source.sha,
                        src_repo_id=self.source.repo if across else None,
                        src_repo_type="model" if across else None,
                    )
                )
            elif step.route != "kept":
                assert step.route == "sent" or not isinstance(step.wanted.contents, Data)
                operations.append(self.additions.made[path])
        return operations
