"""Try again what failed for a while: dropped connections, 5xx and 429, waiting as long as the Hub asks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from ctxforge.checkpoint.hub import is_network
from ctxforge.errors import HubError

Result = TypeVar("Result")

_TOLD_BY_XET = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524})


@dataclass(frozen=True)
class Backoff:
    """How long to wait between tries.

    Attributes:
        attempts: tries in all.
        first: seconds before the second try; doubled each time.
        longest: seconds at most, where the Hub doesn't name a time of its own.
        patience: seconds that the Hub may ask to wait; asked for more, the run ends and says so.
        sleep: what waits.
    """

    attempts: int = 5
    first: float = 1.0
    longest: float = 30.0
    patience: float = 600.0
    sleep: Callable[[float], None] = time.sleep

    def run(self, what: str, action: Callable[[], Result], tell: Callable[[str], None] = lambda _text: None) -> Result:
        """`action()`, tried again after failures that pass by themselves.

        Args:
            what: what is done, for messages.
            action: must be safe to repeat.
            tell: called with one line before each wait.

        Raises:
            HubError: the Hub asks to wait longer than `patience`.
            Exception: what the last try raised, and anything that doesn't pass.
        """
        for attempt in range(1, self.attempts):
            try:
                return action()
            except Exception as error:
                if not transient(error):
                    raise
                seconds = self.wait(error, attempt)
                tell(f"{what}: {_short(error)}; again in {seconds:.0f} s")
                self.sleep(seconds)
        return action()

    def wait(self, error: BaseException, attempt: int) -> float:
        """Seconds to wait after the failed try number `attempt` (from 1).

        Raises:
            HubError: the Hub asks for more than `patience`.
        """
        asked = retry_after(error)
        if asked is None:
            return float(min(self.longest, self.first * 2 ** (attempt - 1)))
        if asked > self.patience:
            raise HubError(
                f"The Hub limits your requests for {asked:.0f} s more.",
                "Run the same command again then; what was sent is kept.",
            ) from error
        return asked


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error or in what caused it; None where no answer came.

    hf_xet raises a ConnectionError for every answer, and tells the status in words.
    """
    for one in chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        told = _TOLD_BY_XET.search(str(one)) if isinstance(one, ConnectionError) else None
        if told is not None:
            return int(told[1])
    return None


def without_xet_storage(error: BaseException) -> bool:
    """Whether the failure says that this Hub knows nothing of Xet uploads."""
    return status_of(error) == 404 and any("xet-write-token" in str(one) for one in chain(error))


def path_of(error: BaseException) -> str:
    """The path of the request that an error came from; empty where that isn't known."""
    for one in chain(error):
        request: Any = getattr(getattr(one, "response", None), "request", None)
        if request is not None:
            return str(request.url.path)
    return ""


def retry_after(error: BaseException) -> float | None:
    """Seconds that the answer asks to wait: its `Retry-After` (a number or a date), or the reset of its rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported lazily

    for one in chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        if headers is None:
            continue
        text = str(headers.get("retry-after", "")).strip()
        if text.isdigit():
            return float(text)
        if text:
            with suppress(ValueError):
                return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        limit = parse_ratelimit_headers(headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds) + 1
    return None


def transient(error: BaseException) -> bool:
    """Whether the failure may pass by itself: no connection, a cut answer, or a status that says so."""
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    from huggingface_hub.errors import OfflineModeIsEnabled

    if any(isinstance(one, OfflineModeIsEnabled) for one in chain(error)):
        return False
    return any(is_network(one) or isinstance(one, json.JSONDecodeError) for one in chain(error))


def _short(error: BaseException) -> str:
    status = status_of(error)
    return f"the Hub answered {status}" if status is not None else f"no answer ({type(error).__name__})"
