"""Files that are given to the Hub before the commit that names them, so that the commit itself is small and quick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.errors import HubError
from ctxforge.publish.connection import Connection
from ctxforge.publish.files import Data, OnDisk, Wanted
from ctxforge.publish.memory import Remembered
from ctxforge.publish.retry import without_xet_storage

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_IGNORE_NOTHING = "# nothing of a checkpoint is left out\n"


@dataclass
class Additions:
    """What was handed over for one commit.

    Attributes:
        connection: the Hub.
        repo: owner/name of the target.
        revision: the branch.
        proposing: the commit will be a pull request.
        made: the operations of the commit, by path.
        by_lfs: this Hub takes large files by Git LFS alone.
    """

    connection: Connection
    repo: str
    revision: str
    proposing: bool
    made: dict[str, CommitOperationAdd] = field(default_factory=dict)
    by_lfs: bool = False

    def small(self, files: Sequence[Wanted]) -> None:
        """Files in memory; most of them travel in the commit itself."""
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(one.path, one.contents.data)
            for one in files
            if isinstance(one.contents, Data) and not self._made_of(one.path, one.contents.sha256)
        ]
        self._hand_over(f"{len(operations)} small files", operations)
        self.made.update({operation.path_in_repo: operation for operation in operations})

    def _made_of(self, path: str, digest: str) -> bool:
        operation = self.made.get(path)
        return operation is not None and operation.upload_info.sha256.hex() == digest

    def from_disk(self, files: Sequence[tuple[str, OnDisk]]) -> None:
        """Local files, several at a time; what the Hub has already is not sent."""
        from huggingface_hub import CommitOperationAdd

        operations = []
        for path, disk in files:
            operation = CommitOperationAdd(path, disk.path)
            if operation.upload_info.size != disk.size:
                raise HubError(f"{disk.path} changed while it was being published.", "Let it settle, then run again.")
            operation.upload_info.sha256 = bytes.fromhex(disk.sha256)
            operations.append(operation)
        self._hand_over(files[0][0] if len(files) == 1 else f"{len(files)} files", operations)
        for operation in operations:
            self.made[operation.path_in_repo] = _kept_in_memory(operation)

    def known(self, path: str, found: Remembered) -> bool:
        """Name a file that an earlier run handed over, without having it here; False where the Hub lacks it."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.lfs import UploadInfo

        info = UploadInfo(size=found.size, sample=found.sample, sha256=bytes.fromhex(found.sha256))
        operation = CommitOperationAdd(path, b"")
        if not hasattr(operation, "_is_uploaded") or not self._is_there(info):
            return False
        operation.upload_info = info
        # As `preupload_lfs_files` leaves an operation whose file it has uploaded and forgotten.
        operation._upload_mode, operation._should_ignore, operation._is_uploaded = "lfs", False, True
        self.made[path] = operation
        return True

    def _is_there(self, info: Any) -> bool:
        from huggingface_hub.lfs import post_lfs_batch_info
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, exported lazily

        api = self.connection.api
        try:
            actions, errors, _ = post_lfs_batch_info(
                [info],
                token=api.token if isinstance(api.token, str) else None,
                repo_type="model",
                repo_id=self.repo,
                endpoint=self.connection.endpoint,
                headers=build_hf_headers(token=api.token, library_name="ctxforge"),
            )
        except Exception:  # whatever it is: then the file is made again, which is always right
            return False
        return not errors and len(actions) == 1 and not actions[0].get("actions")

    def _hand_over(self, what: str, operations: Sequence[CommitOperationAdd]) -> None:
        if not operations:
            return
        with self.connection.errors(f"{what} to {self.repo}"):
            self.connection.run(f"uploading {what}", lambda: self._upload(operations))
        self._refuse_left_out(operations)

    def _upload(self, operations: Sequence[CommitOperationAdd]) -> None:
        with _by_lfs() if self.by_lfs else nullcontext():
            try:
                self.connection.api.preupload_lfs_files(
                    self.repo,
                    additions=operations,
                    revision=self.revision,
                    create_pr=self.proposing,
                    free_memory=True,
                    gitignore_content=_IGNORE_NOTHING,
                )
                return
            except Exception as error:
                if self.by_lfs or not without_xet_storage(error):
                    raise
        self.connection.tell("this Hub has no Xet storage: large files go by Git LFS")
        self.by_lfs = True
        self._upload(operations)

    def _refuse_left_out(self, operations: Sequence[CommitOperationAdd]) -> None:
        left_out = [operation.path_in_repo for operation in operations if getattr(operation, "_should_ignore", False)]
        if left_out:
            raise HubError(
                f"The .gitignore of {self.repo} keeps {left_out[0]} out, and the model would be incomplete.",
                "Remove that line from it, or publish under another name.",
            )


@contextmanager
def _by_lfs() -> Iterator[None]:
    """huggingface_hub without Xet inside, as HF_HUB_DISABLE_XET makes it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _kept_in_memory(operation: CommitOperationAdd) -> CommitOperationAdd:
    """The operation itself, or one that holds the contents where the Hub wants them inside the commit."""
    from huggingface_hub import CommitOperationAdd

    if not isinstance(operation.path_or_fileobj, str):
        return operation
    return CommitOperationAdd(operation.path_in_repo, Path(operation.path_or_fileobj).read_bytes())
