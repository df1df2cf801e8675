"""The held-out windows of a run: chosen once, without chance, and the same in every measurement of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxforge.calibrate.data.pools import Piece
from ctxforge.calibrate.data.rows import held_out_windows, read_row
from ctxforge.calibrate.data.split import Ranges
from ctxforge.calibrate.held_out.settings import HeldOutSettings
from ctxforge.errors import UsageError

ROUNDED = 256
"""What a length that had to be shortened is a multiple of."""


@dataclass(frozen=True, eq=False)
class HeldOutWindow:
    """One stretch of a held-out document.

    Attributes:
        ids: prefix and text, int64 [length].
        prefix: how many of them are the tokenizer's.
        piece: where the text is.
    """

    ids: NDArray[np.int64]
    prefix: int
    piece: Piece

    @property
    def predicted(self) -> int:
        """Tokens that can be scored: the text's, but not a first token, which nothing predicts."""
        return len(self.ids) - max(1, self.prefix)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a run is measured on.

    Attributes:
        settings: as asked for.
        long: windows of one length, at most the target.
        short: windows of one length, at most L0.
        beyond: whether the long windows go beyond L0 far enough to show use of far context. Else they are as long as
            the data allows, and only their mean loss is measured.
        notes: what differs from the settings, a sentence each.
    """

    settings: HeldOutSettings
    long: tuple[HeldOutWindow, ...]
    short: tuple[HeldOutWindow, ...]
    beyond: bool
    notes: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens of a long window."""
        return len(self.long[0].ids)

    @property
    def short_length(self) -> int:
        """Tokens of a short window."""
        return len(self.short[0].ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids of all windows and of where they begin and end, hexadecimal."""
        found = hashlib.sha256()
        for name, windows in (("long", self.long), ("short", self.short)):
            for window in windows:
                found.update(f"{name} {window.prefix} {len(window.ids)} ".encode())
                found.update(window.ids.astype("<i8").tobytes())
        return found.hexdigest()

    def document(self) -> dict[str, Any]:
        """For a run's record: settings, lengths, counts, digest and notes, as JSON takes them."""
        return {
            "settings": asdict(self.settings),
            "long": {"windows": len(self.long), "length": self.length, "beyond": self.beyond},
            "short": {"windows": len(self.short), "length": self.short_length},
            "digest": self.digest,
            "notes": list(self.notes),
        }


def held_out(parts: Sequence[Ranges], settings: HeldOutSettings) -> HeldOut:
    """Take the windows of a run.

    Long windows have the target length. Where no document reaches it they have the longest length that one has, rounded
    down to a multiple of 256 (below 256 as it is), if that is at least 2 L0; else `HeldOut.beyond` is False. Short
    windows come from documents without a long window, then from behind the long ones, and only then from places that a
    long window covers too.

    Args:
        parts: such as `Split.held_out`.
        settings: how much, and how long.

    Raises:
        UsageError: nothing is held out, or no document has two tokens.
    """
    notes: list[str] = []
    reach = max((_reach(part) for part in parts if len(part)), default=0)
    prefix = max((len(part.cache.header.prefix) for part in parts), default=0)
    if reach < prefix + 2:
        raise UsageError(
            "no held-out document has two tokens", "hold out a larger share of the data, or give more documents"
        )
    if settings.source_refresh + prefix >= settings.trained_length:
        raise UsageError(
            f"windows of {settings.trained_length} tokens refreshed every {settings.source_refresh} leave no context",
            "give a smaller refresh",
        )
    length, beyond = _long_length(reach, prefix, settings, notes)
    long = held_out_windows(parts, length, settings.windows)
    if len(long) < settings.windows:
        notes.append(f"The held-out data has {len(long)} of {settings.windows} windows of {length} tokens.")
    short_length = _short_length(parts, settings, notes)
    if short_length < prefix + 2:
        raise UsageError(f"short held-out windows of {short_length} tokens hold no text", "give longer ones")
    short = _short(parts, long, short_length, settings.short_windows, notes)
    return HeldOut(settings, _read(parts, long), _read(parts, short), beyond, tuple(notes))


def _reach(part: Ranges) -> int:
    return int(part.lengths.max()) + len(part.cache.header.prefix)


def _long_length(reach: int, prefix: int, settings: HeldOutSettings, notes: list[str]) -> tuple[int, bool]:
    trained, target = settings.trained_length, settings.target_length
    if target <= trained + prefix:
        notes.append("The target is the trained length: nothing lies beyond it, and use of far context has no number.")
        return (target if reach >= target else _rounded(reach)), False
    if reach >= target:
        return target, True
    length = _rounded(reach)
    said = f"No held-out document reaches {target} tokens, the longest has {reach}"
    if length >= 2 * trained:
        notes.append(f"{said}: long windows have {length}.")
        return length, True
    notes.append(
        f"{said}, less than twice the trained length: use of far context has no number, and only the mean loss of "
        f"windows of {length} tokens and that of short ones are measured."
    )
    return length, False


def _rounded(reach: int) -> int:
    return reach // ROUNDED * ROUNDED or reach


def _short_length(parts: Sequence[Ranges], settings: HeldOutSettings, notes: list[str]) -> int:
    """As asked for; where no document reaches that, the length at which most tokens are measured."""
    reaches = np.sort(np.concatenate([part.lengths + len(part.cache.header.prefix) for part in parts]))[::-1]
    wanted = settings.short_tokens
    if reaches[0] >= wanted:
        return wanted
    longest = reaches[: settings.short_windows]
    length = int(longest[np.argmax(longest * np.arange(1, len(longest) + 1))])
    notes.append(f"No held-out document reaches {wanted} tokens: short windows have {length}.")
    return length


def _short(
    parts: Sequence[Ranges], long: Sequence[Piece], length: int, wanted: int, notes: list[str]
) -> tuple[Piece, ...]:
    covered = [_covered(part, source, long) for source, part in enumerate(parts)]
    untouched = [part.take(stop == part.start) for part, stop in zip(parts, covered, strict=True)]
    behind = [_from(part, stop).take(stop > part.start) for part, stop in zip(parts, covered, strict=True)]
    found = list(held_out_windows(untouched, length, wanted))
    found += held_out_windows(behind, length, wanted - len(found))
    if len(found) < wanted:
        # A window overlaps two of the same length at most, so that these are enough to choose from.
        candidates = held_out_windows(parts, length, wanted + 2 * len(found))
        shared = [one for one in candidates if not any(_overlap(one, other) for other in found)]
        shared = shared[: wanted - len(found)]
        found += shared
        if shared:
            notes.append(f"{len(shared)} of {len(found)} short windows overlap long ones: there is no more room.")
    if len(found) < wanted:
        notes.append(f"The held-out data has {len(found)} of {wanted} windows of {length} tokens.")
    return tuple(found)


def _covered(part: Ranges, source: int, long: Sequence[Piece]) -> NDArray[np.int64]:
    """Where the long windows of each stretch end; its own start where there is none. int64 [stretches]."""
    stop = part.start.copy()
    for piece in (one for one in long if one.source == source):
        inside = (part.document == piece.document) & (part.start <= piece.start) & (piece.stop <= part.stop)
        stop[inside] = np.maximum(stop[inside], piece.stop)
    return stop


def _from(part: Ranges, start: NDArray[np.int64]) -> Ranges:
    return Ranges(part.cache, part.document, start, part.stop)


def _overlap(one: Piece, other: Piece) -> bool:
    same = (one.source, one.document) == (other.source, other.document)
    return same and one.start < other.stop and other.start < one.stop


def _read(parts: Sequence[Ranges], pieces: Sequence[Piece]) -> tuple[HeldOutWindow, ...]:
    caches = [part.cache for part in parts]
    return tuple(
        HeldOutWindow(read_row(caches, [piece]).ids, len(caches[piece.source].header.prefix), piece) for piece in pieces
    )
