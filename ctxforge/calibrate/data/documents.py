"""Documents, and what became of those that were not kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many); 0 where the number is not known."""

_EXAMPLES = 5


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: where it stands in its source: `books.jsonl:17`, `src/main.c`.
        text: what is tokenised.
        source: the name of its source.
        assistant: of a chat, the stretches of `text`, as character ranges, that the assistant wrote, with what ends
            its turns; None where the document is no chat.
    """

    id: str
    text: str
    source: str
    assistant: tuple[tuple[int, int], ...] | None = None


@dataclass
class Tally:
    """What reading has come to.

    Attributes:
        dropped: documents that were not kept, by reason.
        examples: the first ids of each reason.
        bytes_done: bytes of the source that were read.
        bytes_total: bytes that it has; 0 where that isn't known.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    bytes_done: int = 0
    bytes_total: int = 0

    def drop(self, reason: str, document: str) -> None:
        """Count a document that is not kept."""
        self.dropped[reason] += 1
        known = self.examples.setdefault(reason, [])
        if len(known) < _EXAMPLES:
            known.append(document)

    def summary(self) -> str:
        """The reasons with their counts: `12 repeated, 3 empty`."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
