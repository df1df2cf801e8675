"""Answers, and refusals in the form that huggingface_hub/utils/_http.py (`hf_raise_for_status`) reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tests.hub_server.blobs import Blob


@dataclass
class Answer:
    """One answer; `blob` with its range is sent from disk, else `body`, else `value` as JSON.

    `path` names the file or is empty: a lie about sizes asks for it.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    value: Any = None
    blob: Blob | None = None
    start: int = 0
    stop: int = 0
    path: str = ""

    def finish(self) -> int:
        """Settle the body, and give its length."""
        if self.value is not None:
            self.body = json.dumps(self.value).encode()
            self.headers.setdefault("Content-Type", "application/json; charset=utf-8")
        return self.stop - self.start if self.blob is not None else len(self.body)


class RefusalError(Exception):
    """The Hub says no."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of JSON."""
    return Answer(status, dict(headers or {}), value=value)


def refusal(status: int, message: str, code: str | None = None, **extra: Any) -> Answer:
    """An error answer: the message in the body and in X-Error-Message, its kind in X-Error-Code."""
    headers = {"X-Error-Message": " ".join(message.split())}
    if code is not None:
        headers["X-Error-Code"] = code
    return Answer(status, headers, value={"error": message, **extra})


def refuse(status: int, message: str, code: str | None = None, **extra: Any) -> NoReturn:
    """Stop the request with an error answer."""
    raise RefusalError(refusal(status, message, code, **extra))
