"""`{name}` and the like in outputs, repositories and reports."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from ctxforge.batch.tree import Place, wrong

FIELDS = ("name", "source", "method", "length", "to")
"""What a template may hold: the job's name, source, method, target in tokens, and target as written."""

_FIELD = re.compile(r"\{([^{}]*)\}")


def filled(template: str, values: Mapping[str, str], place: Place) -> str:
    """`template` with its fields filled in.

    Raises:
        UsageError: a field that there isn't, or a brace that stands alone.
    """

    def value(match: re.Match[str]) -> str:
        field = match[1].strip()
        if field not in values:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"did you mean {{{near[0]}}}?" if near else f"there are {', '.join(f'{{{one}}}' for one in FIELDS)}"
            raise wrong(place, f"{template!r} has no field {{{field}}} to fill in", hint)
        return values[field]

    bare = _FIELD.sub("", template)
    if "{" in bare or "}" in bare:
        raise wrong(place, f"{template!r} has a brace without its partner", "write fields as {name}")
    return _FIELD.sub(value, template)
