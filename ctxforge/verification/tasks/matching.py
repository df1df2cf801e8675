"""How a generated output is scored against references. Each gives (found, recall)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Match = Callable[[str, Sequence[str]], tuple[bool, float]]


def every(output: str, references: Sequence[str]) -> tuple[bool, float]:
    """Share of the references that occur in the output, in any order and case (RULER's `string_match_all`)."""
    lower = output.lower()
    share = sum(reference.lower() in lower for reference in references) / len(references)
    return share == 1.0, share


def any_of(output: str, references: Sequence[str]) -> tuple[bool, float]:
    """Whether one of several ways to say the answer occurs, in any case (RULER's `string_match_part`: the maximum).

    lm-eval's port averages over the references instead, and so scores lower wherever there are several.
    """
    lower = output.lower()
    found = any(reference.lower() in lower for reference in references)
    return found, float(found)


def presence(output: str, references: Sequence[str]) -> tuple[bool, float]:
    """Whether the reference, stripped, occurs as it is written (Giraffe's presence accuracy)."""
    found = any(reference.strip() in output for reference in references)
    return found, float(found)


MATCHES: dict[str, Match] = {"all": every, "any": any_of, "presence": presence}
