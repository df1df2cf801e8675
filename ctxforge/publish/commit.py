"""The one commit: guarded by its parent, found again when its answer was lost, and read back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ctxforge.errors import HubError
from ctxforge.publish.connection import Connection
from ctxforge.publish.files import Held, Wanted, already_held
from ctxforge.publish.repository import read_files
from ctxforge.publish.retry import chain, path_of, status_of, transient

_SHA256 = re.compile(r"\b[0-9a-f]{64}\b")
_NOT_OFFERED = frozenset({400, 404, 405, 410, 422, 501})
_LEFT_TO_THE_HUB = frozenset({".gitattributes"})


@dataclass(frozen=True)
class Landed:
    """A commit that is on the Hub: its id, its address, and the number of its pull request where it is one."""

    commit: str
    url: str
    pull_request: int | None = None


class CopyRefusedError(Exception):
    """The server won't copy: `digests` are the SHA-256 of the files, empty for all of them."""

    def __init__(self, digests: frozenset[str], reason: str) -> None:
        super().__init__(reason)
        self.digests = digests
        self.reason = reason


@dataclass(frozen=True)
class Intent:
    """What the branch is to hold after the commit.

    Attributes:
        repo: owner/name.
        revision: the branch.
        parent: its head now.
        proposing: open a pull request.
        title, description: of the commit.
        wanted: all files.
        results: SHA-256 of rewritten files by path.
        deletes: files that are to be gone.
    """

    repo: str
    revision: str
    parent: str
    proposing: bool
    title: str
    description: str
    wanted: Sequence[Wanted]
    results: Mapping[str, str]
    deletes: Sequence[str]

    def missing(self, files: Mapping[str, Held]) -> list[str]:
        """The paths that are not as intended in a listing."""
        wrong = [
            one.path
            for one in self.wanted
            if one.path not in _LEFT_TO_THE_HUB and not already_held(one, files.get(one.path), self.results)
        ]
        return [*wrong, *(path for path in self.deletes if path in files)]


def commit(connection: Connection, intent: Intent, operations: Iterable[Any]) -> Landed:
    """Make the commit, once, and prove that it holds what was intended.

    Args:
        connection: the Hub.
        intent: what is to be.
        operations: huggingface_hub's, everything large handed over already.

    Raises:
        CopyRefusedError: the server doesn't copy; nothing was committed.
        HubError: the Hub refused, somebody else committed meanwhile, or what landed isn't what was sent.
    """
    landed = _commit(connection, intent, list(operations))
    with connection.errors(intent.repo):
        wrong = intent.missing(read_files(connection, intent.repo, landed.commit))
    if wrong:
        raise HubError(
            f"The commit {landed.commit} of {intent.repo} does not hold {wrong[0]} as it was sent.",
            "Do not use that commit; run the command again, and report it to the Hub if it stays.",
        )
    return landed


def _commit(connection: Connection, intent: Intent, operations: list[Any]) -> Landed:
    for attempt in range(1, connection.backoff.attempts + 1):
        try:
            return _send(connection, intent, operations)
        except Exception as error:
            refused = _refused_copy(error, proposing=intent.proposing)
            if refused is not None and (attempt > 1 or status_of(error) is not None):
                raise refused from error
            # The answer may be what was lost, and not the commit.
            with connection.errors(intent.repo):
                found = find_landed(connection, intent)
            if found is not None:
                return found
            passing = refused is not None or transient(error) or status_of(error) in (409, 412)
            if not passing or attempt == connection.backoff.attempts:
                with connection.errors(intent.repo):
                    raise
            seconds = connection.backoff.wait(error, attempt)
            connection.tell(f"committing to {intent.repo} failed; again in {seconds:.0f} s")
            connection.backoff.sleep(seconds)
    raise AssertionError


def _send(connection: Connection, intent: Intent, operations: list[Any]) -> Landed:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata: the plan has told them
        info = connection.api.create_commit(
            intent.repo,
            operations,
            commit_message=intent.title,
            commit_description=intent.description,
            revision=None if intent.proposing and intent.revision == "main" else intent.revision,
            create_pr=intent.proposing,
            parent_commit=intent.parent,
        )
    number = info.pr_num
    return Landed(str(info.oid), str(info.pr_url if number is not None else info.commit_url), number)


def find_landed(connection: Connection, intent: Intent) -> Landed | None:
    """A commit that holds what is intended already: the branch's head, or an open pull request of the same title.

    Raises:
        HubError: the branch moved on to something else.
    """
    if intent.proposing:
        return _find_pull_request(connection, intent)
    head = str(
        connection.run(
            f"reading {intent.repo}", lambda: connection.api.model_info(intent.repo, revision=intent.revision)
        ).sha
    )
    if head == intent.parent:
        return None
    if intent.missing(read_files(connection, intent.repo, head)):
        raise HubError(
            f"Somebody else committed to {intent.revision} of {intent.repo} meanwhile.",
            "Look at what they did, and run the command again.",
        )
    return Landed(head, commit_url(connection, intent.repo, head))


def _find_pull_request(connection: Connection, intent: Intent) -> Landed | None:
    def open_ones() -> list[Any]:
        return list(
            connection.api.get_repo_discussions(intent.repo, discussion_type="pull_request", discussion_status="open")
        )

    for one in connection.run(f"reading the pull requests of {intent.repo}", open_ones):
        if one.title != intent.title:
            continue
        revision = f"refs/pr/{one.num}"
        reading = partial(connection.api.model_info, intent.repo, revision=revision)
        info = connection.run(f"reading {revision}", reading)
        if not intent.missing(read_files(connection, intent.repo, str(info.sha))):
            url = f"{connection.endpoint}/{intent.repo}/discussions/{one.num}"
            return Landed(str(info.sha), url, int(one.num))
    return None


def commit_url(connection: Connection, repo: str, sha: str) -> str:
    """The page of a commit."""
    return f"{connection.endpoint}/{repo}/commit/{sha}"


def _refused_copy(error: BaseException, *, proposing: bool) -> CopyRefusedError | None:
    from huggingface_hub.errors import FileDuplicationError

    for one in chain(error):
        if isinstance(one, FileDuplicationError):
            reason = next((line.split(":", 1)[1].strip() for line in str(one).splitlines() if _SHA256.search(line)), "")
            said = f"the server refuses to copy it ({reason[:80]})" if reason else "the server refuses to copy it"
            return CopyRefusedError(frozenset(_SHA256.findall(str(one))), said)
    if path_of(error).endswith("/lfs-files/duplicate"):
        status = status_of(error)
        if status in _NOT_OFFERED:
            return CopyRefusedError(
                frozenset(), f"this Hub doesn't copy it between repositories (it answered {status})"
            )
        if status == 403 and proposing:
            return CopyRefusedError(frozenset(), "copying needs write access to the target")
    return None
