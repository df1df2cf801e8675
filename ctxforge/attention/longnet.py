"""LongNet's dilated attention: branches of segments and dilations, mixed by their softmax denominators."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError

_SHORTEST = 2048


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """Segments w and dilations r: w doubles from the trained length or 2048 to the target, r from 1 to the heads.

    Raises:
        UsageError: no branch, lists of different lengths, a first dilation other than 1, values below 1, segments or
            dilations that do not grow, or a dilation longer than its segment.
    """
    segments = _list(given.get("segments"))
    dilations = _list(given.get("dilations"))
    if segments is None:
        segments = _segments(situation, None if dilations is None else len(dilations))
    if dilations is None:
        dilations = _dilations(len(segments), situation.heads)
    _check(segments, dilations)
    return {"segments": segments, "dilations": dilations}


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """Visible are keys met in any branch; the bias is log c, c the number of branches in which they are met.

    In branch (w, r) query i of head h meets key j <= i where i // w = j // w and both (i mod w) mod r and (j mod w)
    mod r are h mod r. Softmax with log c is the mixture sum_b (s_b / sum s) O_b by the denominators s_b of 2307.02486,
    equation 8 on.
    """
    import torch

    at, head = torch.arange(length), torch.arange(heads)
    count = torch.zeros(heads, length, length, dtype=torch.int64)
    for segment, dilation in zip(parameters["segments"], parameters["dilations"], strict=True):
        together = (at // segment)[:, None] == (at // segment)[None, :]
        kept = (at % segment % dilation)[None, :] == (head % dilation)[:, None]
        count += together[None] & kept[:, :, None] & kept[:, None, :]
    return Pattern(causal(length) & (count > 0), distances(length), bias=count.clamp(min=1).double().log())


def _list(given: Value | None) -> list[int] | None:
    if given is None:
        return None
    assert isinstance(given, list)
    return list(given)


def _segments(situation: Situation, count: int | None) -> list[int]:
    found = [min(_SHORTEST, situation.trained_length)]
    while len(found) < count if count is not None else found[-1] < situation.target_length:
        found.append(2 * found[-1])
    return found


def _dilations(count: int, heads: int) -> list[int]:
    """1, 2, 4, ... as far as every place of a segment is some head's."""
    found = [1]
    while len(found) < count:
        found.append(2 * found[-1] if 2 * found[-1] <= heads else found[-1])
    return found


def _check(segments: list[int], dilations: list[int]) -> None:
    written = "/".join(map(str, segments)), "/".join(map(str, dilations))
    if len(segments) != len(dilations):
        raise UsageError(
            f"longnet: {len(segments)} segments ({written[0]}) and {len(dilations)} dilations ({written[1]})",
            "give one dilation for each segment",
        )
    if dilations[0] != 1:
        raise UsageError(
            f"longnet: dilations={written[1]} do not start with 1, so some tokens would not even see themselves",
            "start them with 1, such as 1/2/4",
        )
    grow = all(a < b for a, b in pairwise(segments))
    widen = all(a <= b for a, b in pairwise(dilations))
    if not grow or not widen or segments[0] < 1:
        raise UsageError(
            f"longnet: segments={written[0]} and dilations={written[1]} do not grow from 1 on",
            "give segments that grow and dilations that do not shrink, such as 2048/4096/8192 and 1/2/4",
        )
    if any(dilation > segment for segment, dilation in zip(segments, dilations, strict=True)):
        raise UsageError(
            f"longnet: a dilation of {written[1]} is longer than its segment of {written[0]}",
            "give dilations far below their segments",
        )


ATTACHMENTS = (
    Attachment(
        name="longnet",
        title="LongNet dilated attention",
        reference="2307.02486; microsoft/torchscale:torchscale/component/dilated_attention.py (MIT)",
        summary="Each head attends within segments, densely in short ones and ever more sparsely in longer ones.",
        can=(
            "Prefill and training grow linearly with the length, at a cost of T times the sum of w / r^2.",
            "Everything in the longest segment can be reached, more sparsely the farther it is.",
        ),
        cannot=(
            "No conversion of a trained model is published: without long training the result is not worth using.",
            "Segments do not overlap: the first token of a segment of the longest branch sees itself alone.",
            "A dilation above the number of heads leaves places that no head keeps.",
        ),
        needs="training",
        cost="O(T sum w/r^2) for a prompt, O(sum w/r^2) scores a decoded token, a cache of all tokens; padded or"
        " packed batches and chunks of a prompt cost O(T w_max)",
        engines="transformers with trust_remote_code",
        parameters=(
            Parameter(
                "segments",
                "ints",
                None,
                "w of each branch in tokens, growing; doubles from L0 or 2048, whichever is less, until it holds L'",
            ),
            Parameter(
                "dilations",
                "ints",
                None,
                "r of each branch, the first 1; doubles from 1 and stays at most the number of heads",
            ),
        ),
        resolve=resolve,
        pattern=pattern,
        system="longnet",
    ),
)
