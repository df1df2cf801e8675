"""The result of a verification, and the comparison with the source inside the trained length."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import InternalError
from ctxforge.verification.external.result import ExternalReport
from ctxforge.verification.gates.reach import EffectiveLength
from ctxforge.verification.gates.types import Judgement
from ctxforge.verification.measures import Measures

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """How the numbers were made: two reports compare only where these agree.

    Attributes:
        text_sha256: of the whole text in UTF-8.
        text_tokens: tokens that were read from it (all of it when `text_complete`).
        text_complete: False when only the beginning of a very long text was tokenised.
        prefix_ids: ids that the tokenizer adds before a text; they stand in front of every window.
        windows: windows of the target length.
        trained_length: L0, in tokens.
        target_length: L', in tokens.
        average: how token losses become perplexity.
        dtype: asked for, the same for every model.
        device: the torch device.
        threads: torch's CPU threads.
        processes: that shared the units of the measurement.
        needles: depth strata asked for.
        seeds: haystacks.
        needle_form: the fact as it is planted.
        versions: of python, torch, transformers and ctxforge.
    """

    text_sha256: str
    text_tokens: int
    text_complete: bool
    prefix_ids: tuple[int, ...]
    windows: int
    trained_length: int
    target_length: int
    average: str
    dtype: str
    device: str
    threads: int
    processes: int
    needles: int
    seeds: int
    needle_form: str
    versions: dict[str, str]


@dataclass(frozen=True)
class ShortContext:
    """Paired difference against the source on the same windows inside the trained length.

    Attributes:
        length: tokens of a window.
        differences: result's mean loss minus source's, in nats a token, window by window.
        mean: their mean; positive means that the result is worse than the source.
    """

    length: int
    differences: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        protocol: how it was measured.
        result, source: of the checkpoint, and of the one it was made from.
        short_context: their paired difference inside the trained length.
        judgement: the gates with their verdicts; None when nothing was judged.
        effective: how far the gates hold; None likewise.
        notes: what was left out and why, a line each.
        external: what lm-eval found; None when it was not asked.
    """

    protocol: Protocol
    result: Measures
    source: Measures | None
    short_context: ShortContext | None
    judgement: Judgement | None = None
    effective: EffectiveLength | None = None
    notes: tuple[str, ...] = ()
    external: ExternalReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-serialisable data. Non-finite numbers become None.

        Schema (version 1)::

            {"schema": 1,
             "protocol": {every field of `Protocol`},
             "result": {"label", "lengths": [{"length", "tokens", "nll", "ppl"}],
                        "buckets": [{"start", "end", "tokens", "nll", "ppl"}],
                        "retrieval": [{"length", "stratum", "depth_start", "depth_end", "nll", "exact", "count"}],
                        "answers": [{"seed", "length", "stratum", "strata", "nll", "exact"}],
                        "window_buckets": [["buckets" of one window]], "short_windows": [nll],
                        "passes", "retrieval_way", "head", "attention", "dtype", "finite",
                        "tasks": [{"task", "seed", "depth", "length", "nll", "exact", "recall", "output"}],
                        "protocols": [{every field of `ProtocolResult`}],
                        "far_context": null or {every field of `FarContext`}},
             "source": null or the same as "result",
             "short_context": null or {"length", "differences": [nats], "mean"},
             "judgement": null or {"verdict", "exit_code", "headline", "gates": [...], "left_out": [...]},
             "effective": null or {"length", "low", "high", "has_interval", "failed", "words"}}
        """
        data = {"schema": SCHEMA_VERSION, **dataclasses.asdict(self)}
        if self.judgement is not None:
            data["judgement"] = self.judgement.to_dict()
        plain: dict[str, Any] = _plain(data)
        return plain


def short_context(source: Measures, result: Measures, length: int) -> ShortContext:
    """Pair the short windows of two models that were measured on the same text with the same settings.

    Raises:
        InternalError: the two have different numbers of windows.
    """
    if len(source.short_windows) != len(result.short_windows):
        raise InternalError("the short-context windows of source and result do not pair.", "Please report this.")
    differences = tuple(r - s for s, r in zip(source.short_windows, result.short_windows, strict=True))
    return ShortContext(length, differences, math.fsum(differences) / len(differences))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
