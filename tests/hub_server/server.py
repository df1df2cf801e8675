"""The server as tests hold it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, Lock, Thread
from typing import Any, Self

from tests.hub_server.accounts import Account
from tests.hub_server.blobs import Blobs, File, git_file, is_lfs
from tests.hub_server.counting import Request
from tests.hub_server.faults import Fault, Fired
from tests.hub_server.handler import Handler
from tests.hub_server.inside import inside
from tests.hub_server.repos import Change, Repo
from tests.hub_server.routes import load
from tests.hub_server.state import Options, State

_ROOT = Path(__file__).parents[2]
_OF_THE_USER = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME")


class HubServer:
    """A Hub on 127.0.0.1 while the `with` block runs; its options are those of `Options` (`older=True`, say).

    Attributes:
        url: http://127.0.0.1:port.
        folder: where uploads are kept.
        options: may be changed while the server runs.

    Raises:
        AssertionError: on leaving, when a route failed by a bug of this server.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = Options(**options)
        self._state = State(Blobs(folder / "objects"), self.options)
        self._closing = Event()
        load()
        handler = type("BoundHandler", (Handler,), {"state": self._state, "closing": self._closing})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = self._state.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        assert kind is not None or not self.problems, "\n".join(self.problems)

    def account(
        self,
        name: str,
        *,
        role: str = "write",
        orgs: Iterable[str] | Mapping[str, str] = (),
        scopes: Mapping[str, Iterable[str]] | None = None,
        reads_gated: bool = True,
    ) -> str:
        """A user with one token, which is returned.

        Args:
            name: of the user.
            role: of the token: "write", "read" or "expired"; with `scopes` it is fine-grained whatever this says.
            orgs: organizations that the user may write in, or a mapping of them to the user's role there.
            scopes: user, organization or repository to permissions ("repo.content.read", "repo.write").
            reads_gated: whether a fine-grained token may read gated repositories.
        """
        token = f"hf_{secrets.token_hex(16)}"
        self._state.accounts[token] = Account(
            name,
            token,
            "fineGrained" if scopes is not None and role != "expired" else role,
            dict(orgs) if isinstance(orgs, Mapping) else dict.fromkeys(orgs, "write"),
            {entity: tuple(permissions) for entity, permissions in (scopes or {}).items()},
            reads_gated,
        )
        return token

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        private: bool = False,
        gated: bool | str = False,
        granted: Iterable[str] = (),
        xet: bool = True,
        region: str = "us",
        repo_type: str = "model",
        disabled: bool = False,
        sha256: Mapping[str, str] | None = None,
    ) -> str:
        """A repository with one commit on main; its sha.

        Args:
            repo_id: "owner/name".
            files: path to content; a Path is linked to, and read only to hash it unless `sha256` has its hash.
            private: seen by its owner and the owner's organization only.
            gated: True for "manual", or "auto" or "manual".
            granted: names of the accounts that were given access to a gated repository.
            xet: whether its LFS files have xet hashes.
            region: its storage region.
            repo_type: "model", "dataset" or "space".
            disabled: whether the Hub took it down.
            sha256: hashes that are believed.
        """
        state = self._state
        assert not self.has_repo(repo_id, repo_type), f"{repo_id} is there already"
        repo = state.make_repo(repo_id, repo_type)
        repo.private, repo.gated, repo.xet, repo.region = private, "manual" if gated is True else gated, xet, region
        repo.granted, repo.disabled = set(granted), disabled
        with state.lock:
            state.list_repo(repo)
            made = {path: self._file(repo, path, content, (sha256 or {}).get(path)) for path, content in files.items()}
            return repo.commit("main", None, made, "initial commit", "", repo.namespace).sha

    def push(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        branch: str = "main",
        message: str = "Somebody else's commit",
        remove: Iterable[str] = (),
        repo_type: str = "model",
    ) -> str:
        """Somebody else's commit on a branch, as if it came over git; its sha."""
        repo = self.repo(repo_id, repo_type)
        with self._state.lock:
            kept = {path: file for path, file in repo.files(branch).items() if path not in set(remove)}
            made = {path: self._file(repo, path, content, None) for path, content in files.items()}
            return repo.commit(branch, repo.head(branch), kept | made, message, "", repo.namespace).sha

    def _file(self, repo: Repo, path: str, content: bytes | Path, sha256: str | None) -> File:
        blobs = self._state.blobs
        blob = blobs.add_bytes(content) if isinstance(content, bytes) else blobs.add_path(content, sha256)
        lfs = is_lfs(path, blob.size, blob.read(0, min(512, blob.size)))
        if lfs:
            repo.link(blob.sha256)
        return git_file(blob, lfs, repo.xet)

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """A repository that must exist."""
        return self._state.repos[repo_type, repo_id]

    def has_repo(self, repo_id: str, repo_type: str = "model") -> bool:
        """Whether a repository exists."""
        return (repo_type, repo_id) in self._state.repos

    def grant(self, repo_id: str, name: str) -> None:
        """Give an account access to a gated repository."""
        self.repo(repo_id).granted.add(name)

    @property
    def journal(self) -> list[Change]:
        """Every change of state, in order."""
        with self._state.lock:
            return list(self._state.journal)

    def states(self, repo_id: str, ref: str = "main") -> list[dict[str, File]]:
        """Every state that a reference ever showed, oldest first: none of them may be half of what was pushed."""
        return [
            dict(found.files) for found in self.journal if (found.repo, found.what, found.ref) == (repo_id, "ref", ref)
        ]

    @property
    def requests(self) -> list[Request]:
        """What was asked since the last reset."""
        return self._state.counter.requests()

    @property
    def received(self) -> int:
        """Bytes of request bodies since the last reset."""
        return sum(request.received for request in self.requests)

    @property
    def sent(self) -> int:
        """Bytes of answer bodies since the last reset."""
        return sum(request.sent for request in self.requests)

    def reset(self) -> None:
        """Count from zero; repositories stay."""
        self._state.counter.reset()

    def inject(self, *faults: Fault) -> None:
        """Let requests to come fail."""
        self._state.faults.inject(*faults)

    def clear_faults(self) -> None:
        """Work well again."""
        self._state.faults.clear()

    @property
    def fired(self) -> list[Fired]:
        """The faults that met a request so far."""
        return list(self._state.faults.fired)

    @property
    def problems(self) -> list[str]:
        """Tracebacks of this server's own bugs."""
        return list(self._state.problems)

    def inside(self, token: str | None, home: Path, *, wait: bool = False) -> AbstractContextManager[None]:
        """Within this block the huggingface_hub of this very process speaks to this server: no child is needed.

        Args:
            token: what HF_TOKEN holds; None for anonymous.
            home: where its caches are.
            wait: whether retries wait as they do for users; without it they come at once.
        """
        return inside(self.url, token, home, wait)

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """The whole environment of a child process that speaks to this server and to nothing of the user's own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_USER)}
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "huggingface"),
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return kept


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._open: set[Any] = set()
        self._lock = Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection in a thread of its own."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close one connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close the port, and the connections that clients keep open."""
        super().server_close()
        with self._lock:
            for request in self._open:
                with suppress(OSError):
                    request.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nothing to report."""
