"""Which function answers which method and path."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

from tests.hub_server.answers import Answer
from tests.hub_server.call import Call

Route = Callable[[Call], Answer]

_PIECES = {
    "kind": r"(?P<kind>models|datasets|spaces)",
    "repo": r"(?P<repo>[^/]+(?:/[^/]+)?)",
    "path": r"(?P<path>.+)",
}
_TABLE: list[tuple[str, re.Pattern[str], Route]] = []


def route(method: str, template: str) -> Callable[[Route], Route]:
    """Serve `method` on paths like "/api/{kind}/{repo}/tree/{rev}"; earlier declarations win.

    "{kind/}" is the optional datasets/ or spaces/ in front of a repository's own pages; a name without a rule of its
    own is one percent-encoded segment.
    """
    pattern = re.sub(r"\{(\w+)\}", lambda name: _PIECES.get(name[1], rf"(?P<{name[1]}>[^/]+)"), template)
    pattern = pattern.replace("{kind/}", "(?:(?P<kind>datasets|spaces)/)?").replace(".git", r"\.git")

    def add(function: Route) -> Route:
        _TABLE.append((method, re.compile(pattern), function))
        return function

    return add


def find(method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """The function for a request and the named pieces of its path; HEAD is served as GET."""
    for allowed, pattern, function in _TABLE:
        if allowed == ("GET" if method == "HEAD" else method) and (match := pattern.fullmatch(path)):
            return function, {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
    return None
