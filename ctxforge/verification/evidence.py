"""From what was measured to what gates judge: `Measures` of result and source as named measurements.

Units are paired: the same window of the same text, the same haystack and depth. Names are those of
`ctxforge.verification.gates.defaults`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctxforge.verification.cache_check import beyond_rounding
from ctxforge.verification.gates.measurement import Measurement, difference, exact, ratio
from ctxforge.verification.measures import Measures
from ctxforge.verification.perplexity import BucketScore
from ctxforge.verification.scored import ScoredAnswer

NO_SOURCE = "no source was given to compare with (--source)"
_THIRDS = ("first third", "middle third", "last third")


def measurements(
    result: Measures, source: Measures | None, trained_length: int, length: int
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Everything that gates may judge at `length`, and the reasons for what is missing.

    Args:
        result: of the conversion.
        source: of the checkpoint it was made from, on the same text and settings.
        trained_length: L0 in tokens.
        length: the length to judge, at most the target.
    """
    found = {"nonfinite_losses": exact(0.0 if result.finite else 1.0)}
    missing: dict[str, str] = {}
    if result.cache_difference is None:
        missing["cache_difference"] = "this model keeps no cache that could be compared"
    else:
        found["cache_difference"] = exact(beyond_rounding(result.cache_difference, result.cache_rounding))
    _use(found, missing, result, source)
    _short(found, missing, result, source)
    _long(found, missing, result, source, trained_length, length)
    _retrieval(found, missing, result, source, trained_length, length)
    return found, missing


def _short(found: dict[str, Measurement], missing: dict[str, str], result: Measures, source: Measures | None) -> None:
    if source is None:
        missing["short_nll"] = NO_SOURCE
    else:
        found["short_nll"] = difference(result.short_windows, source.short_windows, unit="document")


def _use(found: dict[str, Measurement], missing: dict[str, str], result: Measures, source: Measures | None) -> None:
    """Truncating the context, as users of the source do, against using all of it: positive when the extension wins."""
    if source is None:
        missing["delta_use"] = NO_SOURCE
    elif not source.truncated or len(source.truncated) != len(result.beyond):
        missing["delta_use"] = "the source was not measured on truncated contexts (tiers standard and full do)"
    else:
        found["delta_use"] = difference(source.truncated, result.beyond, unit="document", worst="lowest")


def _long(
    found: dict[str, Measurement],
    missing: dict[str, str],
    result: Measures,
    source: Measures | None,
    trained_length: int,
    length: int,
) -> None:
    """The bucket that ends at `length`, against the source's just below L0, on the same windows."""
    reference = source if source is not None and source.window_buckets else result
    last = [_ending(buckets, length) for buckets in result.window_buckets]
    below = [_ending(buckets, trained_length) for buckets in reference.window_buckets]
    pairs = [(one, other) for one, other in zip(last, below, strict=False) if one is not None and other is not None]
    if not pairs:
        missing["long_nll"] = "perplexity was not measured that far, or no bucket ends inside the trained length"
        return
    found["long_nll"] = difference(
        [one.nll for one, _ in pairs],
        [other.nll for _, other in pairs],
        unit="document",
        weights=[float(one.tokens) for one, _ in pairs],
        source_weights=[float(other.tokens) for _, other in pairs],
    )


def _ending(buckets: tuple[BucketScore, ...], length: int) -> BucketScore | None:
    """The last bucket that ends at or below `length`."""
    return max((bucket for bucket in buckets if bucket.end <= length), key=lambda bucket: bucket.end, default=None)


def _retrieval(
    found: dict[str, Measurement],
    missing: dict[str, str],
    result: Measures,
    source: Measures | None,
    trained_length: int,
    length: int,
) -> None:
    names = ("retrieval", "retrieval_depth", "retrieval_nll", "retrieval_depth_nll")
    if source is None:
        missing.update(dict.fromkeys(names, NO_SOURCE))
        return
    theirs = _at(source, trained_length)
    pairs = [(answer, partner) for answer in _at(result, length) if (partner := _partner(answer, theirs)) is not None]
    if not pairs:
        missing.update(dict.fromkeys(names, f"no prompt was asked both at {length} tokens and of the source"))
        return
    labels = [f"seed {one.seed}, depth {one.stratum + 1}/{one.strata}" for one, _ in pairs]
    thirds = [_THIRDS[3 * one.stratum // one.strata] for one, _ in pairs]
    losses = [one.nll for one, _ in pairs], [other.nll for _, other in pairs]
    hits = [float(one.exact) for one, _ in pairs], [float(other.exact) for _, other in pairs]
    found["retrieval"] = ratio(*hits, unit="prompt", labels=labels, outcomes=True)
    found["retrieval_depth"] = ratio(*hits, unit="prompt", labels=labels, groups=thirds, outcomes=True)
    found["retrieval_nll"] = difference(*losses, unit="prompt", labels=labels)
    found["retrieval_depth_nll"] = difference(*losses, unit="prompt", labels=labels, groups=thirds)


def _at(measures: Measures, length: int) -> list[ScoredAnswer]:
    return [answer for answer in measures.answers if answer.length == length]


def _partner(answer: ScoredAnswer, others: Sequence[ScoredAnswer]) -> ScoredAnswer | None:
    """The other model's prompt of the same seed at the nearest depth: a short context holds fewer strata."""
    same = [other for other in others if other.seed == answer.seed]
    return min(same, key=lambda other: abs(_depth(other) - _depth(answer)), default=None)


def _depth(answer: ScoredAnswer) -> float:
    return (answer.stratum + 0.5) / answer.strata
