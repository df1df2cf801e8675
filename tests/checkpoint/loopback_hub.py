"""The part of the Hub's HTTP interface that reading needs, on the standard library's server, for tests on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

SHA = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Serves folders as models. `served` counts the bytes of bodies by file; `ignore_ranges` plays a bad proxy."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.gated: set[str] = set()
        self.failing: set[str] = set()
        self.served: dict[str, int] = {}
        self.ignore_ranges = False
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[LoopbackHub]:
        hub = self

        class Handler(_Handler):
            owner = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    def _answer(self) -> None:
        path = unquote(self.path.split("?")[0])
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        if found is None or found[1] not in self.owner.models:
            return self._refuse(401 if found else 404, "RepoNotFound")
        repo, route, revision, rest = found.groups()
        if repo in self.owner.failing:
            return self._send(503)
        if repo in self.owner.gated and route == "resolve":  # what a gated model is, everyone may see
            return self._refuse(403, "GatedRepo")
        if revision not in (None, "main", SHA):
            return self._refuse(404, "RevisionNotFound")
        root = self.owner.models[repo]
        if route == "resolve":
            return self._file(root, rest or "")
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        if route == "tree":
            return self._json([self._entry(root, name) for name in names])
        return self._json({"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in names]})

    def _entry(self, root: Path, name: str) -> dict[str, object]:
        data = (root / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _file(self, root: Path, name: str) -> None:
        if not (root / name).is_file():
            return self._refuse(404, "EntryNotFound")
        data = (root / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not self.owner.ignore_ranges:
            start, stop = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
            data, status = data[start : stop + 1], 206
        if self.command == "GET":
            self.owner.served[name] = self.owner.served.get(name, 0) + len(data)
        return self._send(status, data, **headers)
