"""HTTP: parse, let faults strike, dispatch, answer, count."""

from __future__ import annotations

import traceback
import uuid
from http.server import BaseHTTPRequestHandler
from threading import Event
from urllib.parse import parse_qs, urlsplit

from tests.hub_server.accounts import find_account
from tests.hub_server.answers import Answer, RefusalError, refusal
from tests.hub_server.call import Body, Call, GoneError
from tests.hub_server.counting import Entry, Request
from tests.hub_server.faults import Fault
from tests.hub_server.lies import lie
from tests.hub_server.routing import find
from tests.hub_server.state import State


class Handler(BaseHTTPRequestHandler):
    """One connection; `state` and `closing` are set on a subclass by the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State
    closing: Event

    def _run(self) -> None:
        target = urlsplit(self.path)
        entry = self.state.counter.begin(
            Request(self.command, target.path, query=target.query, range=self.headers.get("Range"))
        )
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        body = Body(self.rfile, None if chunked else int(self.headers.get("Content-Length") or 0), entry)  # type: ignore[arg-type]
        faults = self.state.faults.take(self.command, self.path)
        try:
            answer = self._before(faults, body) or self._answer(target.path, target.query, body, entry)
            body.drain()
            self._send(self._after(faults, answer), faults, entry)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _run  # noqa: N815

    def _before(self, faults: list[Fault], body: Body) -> Answer | None:
        """Faults that strike before the request has any effect."""
        for fault in faults:
            if fault.kind == "slow" and fault.when == "before":
                self.closing.wait(fault.seconds)
            if fault.action is not None:
                fault.action()
            if fault.kind not in ("drop", "status") or fault.when == "after":
                continue
            if fault.when == "during":
                body.half()
            if fault.kind == "drop":
                raise GoneError
            return _status(fault)
        return None

    def _after(self, faults: list[Fault], answer: Answer) -> Answer:
        """Faults that strike when the effect is there but the answer isn't."""
        for fault in faults:
            if fault.when == "after" and fault.kind == "slow":
                self.closing.wait(fault.seconds)
            if fault.when == "after" and fault.kind == "drop":
                raise GoneError
            if fault.when == "after" and fault.kind == "status":
                answer = _status(fault)
            if fault.kind == "lie":
                lie(fault, answer)
        return answer

    def _answer(self, path: str, query: str, body: Body, entry: Entry) -> Answer:
        try:
            account = find_account(self.state.accounts, self.headers.get("Authorization"))
            entry.update(account=account.name if account else None)
            found = find(self.command, path)
            if found is None:
                return refusal(404, f"Cannot {self.command} {path}")
            function, parts = found
            return function(Call(self.state, self.command, self.headers, parts, parse_qs(query), account, body))
        except RefusalError as refused:
            return refused.answer
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            self.state.problems.append(f"{self.command} {path}\n{traceback.format_exc()}")
            return refusal(500, "The test server has a bug; see HubServer.problems.")

    def _send(self, answer: Answer, faults: list[Fault], entry: Entry) -> None:
        length = answer.finish()
        entry.update(status=answer.status)
        self.send_response_only(answer.status)
        answer.headers.setdefault("Content-Length", str(length))
        announced = int(answer.headers["Content-Length"])
        for name, value in {**answer.headers, "X-Request-Id": uuid.uuid4().hex}.items():
            self.send_header(name, value)
        keep = length
        for fault in faults:
            if fault.kind == "truncate" and self.command != "HEAD":
                keep = min(length, length // 2 if fault.keep is None else fault.keep)
        if keep != length or announced != length:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        parts = answer.blob.chunks(answer.start, answer.start + keep) if answer.blob else iter([answer.body[:keep]])
        for part in parts:
            entry.add(sent=len(part))
            self.wfile.write(part)
        if keep != length:
            raise GoneError

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def _status(fault: Fault) -> Answer:
    answer = refusal(fault.status, fault.message, fault.code)
    answer.headers |= dict(fault.headers)
    return answer
