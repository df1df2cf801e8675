"""What was measured: of the source, once, and of the model as it stands, many times. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ctxforge.calibrate.held_out.windows import HeldOut
from ctxforge.errors import CheckpointError, UsageError

RelativeTo = Literal["source", "start"]
Windows = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Reference:
    """Losses that a calibrated model is held against, in nats a token.

    Attributes:
        source: what was measured, by name.
        relative_to: `source`: the model before its extension. `start`: the extended one before its calibration, cut to
            L0 tokens, where the source is not at hand.
        long: of each long window the mean loss of its tokens beyond L0, seen through windows of L0 tokens that are
            refreshed as `verification.long_use.delta_use` does; empty where no window goes beyond.
        short: of each short window its mean loss.
        digest: of the windows, `HeldOut.digest`.
        trained_length: L0.
        refresh: tokens that share a window.
    """

    source: str
    relative_to: RelativeTo
    long: tuple[float, ...]
    short: tuple[float, ...]
    digest: str
    trained_length: int
    refresh: int

    def fits(self, held_out: HeldOut) -> bool:
        """Whether it was measured on these windows, in this way."""
        asked = held_out.settings
        here = (held_out.digest, asked.trained_length, asked.source_refresh)
        count = (len(held_out.long) if held_out.beyond else 0, len(held_out.short))
        return here == (self.digest, self.trained_length, self.refresh) and count == (len(self.long), len(self.short))

    def document(self) -> dict[str, Any]:
        """As JSON takes it; every float comes back as it was."""
        return {**asdict(self), "long": list(self.long), "short": list(self.short)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Reference:
        """The reference of a `document`.

        Raises:
            CheckpointError: it is none.
        """
        if not isinstance(document, Mapping) or set(document) != set(cls.__dataclass_fields__):
            raise _damaged("reference")
        texts = all(isinstance(document[key], str) for key in ("source", "digest"))
        counts = all(isinstance(document[key], int) for key in ("trained_length", "refresh"))
        if not texts or not counts or document["relative_to"] not in ("source", "start"):
            raise _damaged("reference")
        losses = {key: _numbers(document[key], "reference") for key in ("long", "short")}
        return cls(**{**document, **losses})


@dataclass(frozen=True)
class HeldOutResult:
    """A model on the held-out windows, in nats a token.

    Attributes:
        use: Delta_use: the reference's loss minus the model's over the tokens beyond L0, each token weighing the same;
            positive when the extension beats cutting the text to L0. None where no window goes beyond.
        use_interval: 95 % of the paired bootstrap over windows; None below 8 windows.
        long_nll: the model's loss over the tokens beyond L0, or None.
        tail_nll: over those of them in the last eighth of each long window, or None.
        full_nll: over all tokens of the long windows, measured only where none goes beyond L0; else None.
        short_nll: over the short windows.
        short_regression: that minus the reference's; positive is worse.
        relative_to: what the reference is: see `Reference.relative_to`.
        tokens: of the model's own losses that were averaged, long and short.
        long_windows: of each long window the mean loss and over how many tokens: those beyond L0, or all where no
            window goes beyond.
        short_windows: the same of each short one.
    """

    use: float | None
    use_interval: tuple[float, float] | None
    long_nll: float | None
    tail_nll: float | None
    full_nll: float | None
    short_nll: float
    short_regression: float
    relative_to: RelativeTo
    tokens: int
    long_windows: Windows = ()
    short_windows: Windows = ()

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return not self._not_finite()

    def document(self) -> dict[str, Any]:
        """As JSON takes it: a loss that is not finite is null and named in `not_finite`."""
        bad = self._not_finite()
        found = {key: None if key in bad else value for key, value in asdict(self).items()}
        interval = None if self.use_interval is None else list(self.use_interval)
        for key in _WINDOWS:
            windows: Windows = getattr(self, key)
            found[key] = [[loss if math.isfinite(loss) else None, count] for loss, count in windows]
        return {**found, "use_interval": interval, "not_finite": bad}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> HeldOutResult:
        """The result of a `document`; what was not finite is nan.

        Raises:
            CheckpointError: it is none.
        """
        fields = set(cls.__dataclass_fields__)
        if not isinstance(document, Mapping) or set(document) != fields | {"not_finite"}:
            raise _damaged("result")
        bad, interval = document["not_finite"], document["use_interval"]
        if not isinstance(bad, list) or not set(bad) <= set(_LOSSES) or not isinstance(document["tokens"], int):
            raise _damaged("result")
        found: dict[str, Any] = {key: math.nan if key in bad else document[key] for key in fields}
        losses = [found[key] for key in _LOSSES if found[key] is not None or key in _ALWAYS]
        if not all(isinstance(loss, float) for loss in losses) or found["relative_to"] not in ("source", "start"):
            raise _damaged("result")
        for key in _WINDOWS:
            found[key] = _windows(found[key])
        found["use_interval"] = None if interval is None else _numbers(interval, "result")
        return cls(**found)

    def _not_finite(self) -> list[str]:
        found = {key: getattr(self, key) for key in _LOSSES}
        return [key for key, value in found.items() if value is not None and not math.isfinite(value)]


_ALWAYS = ("short_nll", "short_regression")
_LOSSES = ("use", "long_nll", "tail_nll", "full_nll", *_ALWAYS)
_WINDOWS = ("long_windows", "short_windows")


def demand_fit(reference: Reference, held_out: HeldOut) -> None:
    """Raise a UsageError unless the reference was measured on these windows."""
    if not reference.fits(held_out):
        raise UsageError(
            f"the losses of {reference.source} are of other held-out windows", "measure the reference on these windows"
        )


def _numbers(found: Any, what: str) -> tuple[float, ...]:
    if not isinstance(found, list) or not all(isinstance(one, float) and math.isfinite(one) for one in found):
        raise _damaged(what)
    return tuple(found)


def _windows(found: Any) -> Windows:
    try:
        return tuple((math.nan if loss is None else float(loss), int(count)) for loss, count in found)
    except (TypeError, ValueError):
        raise _damaged("result") from None


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"this is no {what} of held-out losses", "delete the file and measure again")
