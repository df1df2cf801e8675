"""Provenance and configs with anything in the place of anything: a card is made all the same."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from ctxforge.errors import UsageError
from tests.publish.card.builders import card, given, stored

JUNK = st.sampled_from(
    [
        *(None, True, -1, 0, 3, 10**30, 1e308, float("inf"), float("nan"), "", "x", "none", "../../x", [], {}, [1]),
        *(["x"], {"x": 1}, [[]], [None], {"name": 3}, [{"divisors": "x"}], "a" * 5000, "yarn+nobody", "\ud800"),
        *([1e30] * 3, [float("nan")] * 2),
    ]
)
CALIBRATED = json.loads((Path(__file__).parent / "fixtures" / "calibrated.json").read_text(encoding="utf-8"))


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry, lists by their first."""
    found = [here] if here else []
    if isinstance(value, dict):
        for key, entry in value.items():
            found += paths(entry, (*here, key))
    elif isinstance(value, list) and value:
        found += paths(value[0], (*here, 0))
    return found


def put(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    made = copy.deepcopy(value)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = junk
    return made


SOURCES = {
    "attached": (given("yarn", "lm-infinite").provenance, given("yarn", "lm-infinite").config),
    "calibrated": (CALIBRATED["provenance"], CALIBRATED["config"]),
}
CHANGES = [(name, part, path) for name, both in SOURCES.items() for part in (0, 1) for path in paths(both[part])]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@examples(st.sampled_from(CHANGES), JUNK)
def test_whatever_stands_in_its_place(change: tuple[str, int, tuple[Any, ...]], junk: Any) -> None:
    name, which, path = change
    both = list(SOURCES[name])
    both[which] = put(both[which], path, junk)
    made = card(provenance=both[0], config=both[1])
    assert made.contents
    assert ModelCard(made.text).data.library_name == "transformers"


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@examples(st.sampled_from(paths(json.loads(json.dumps(stored().to_dict())))), JUNK)
def test_a_damaged_report_is_shown_or_refused(path: tuple[Any, ...], junk: Any) -> None:
    """Never a traceback: numbers that are wrong can't be seen to be, everything else is refused in one line."""
    document = put(json.loads(json.dumps(stored().to_dict())), path, junk)
    with contextlib.suppress(UsageError):
        assert card(verify_report=document).contents
