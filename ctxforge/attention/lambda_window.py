"""LM-Infinite and StreamingLLM: sinks and a window, one operator that differs in how far away a sink counts.

A query m sees the keys m - n < W at their true distance, and the sinks j < G. A sink with m - j >= W counts as W tokens
away (LM-Infinite) or as min(m, G + W - 1) - j (StreamingLLM, its place in a cache of G + W tokens). The fast form is
templates/modeling/modeling_lambda_window.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UsageError


def resolve(name: str, rule: str, given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """Window W, sinks G, the sinks' rule and whether the cache evicts.

    W is L - G unless given, L the length that the rotation is made for: L0, or L' with a method that extends. Then no
    distance exceeds L - 1 and no query sees more than L keys.

    Args:
        name: of the attachment, for messages.
        rule: "ceiling" or "cache".
        given: the user's.
        situation: the model's.

    Raises:
        UsageError: negative sinks, a window that is not larger than the sinks, or both together above L.
    """
    longest = situation.trained_length if situation.method == "none" else situation.target_length
    sinks = int(given["sinks"])  # type: ignore[arg-type]
    if sinks < 0:
        raise UsageError(f"{name}: sinks={sinks} is negative", "give 0 or more tokens")
    window = int(given.get("window", longest - sinks))  # type: ignore[arg-type]
    if window <= sinks and "window" not in given:
        raise UsageError(
            f"{name}: the window that sinks={sinks} leave of {longest} tokens is not larger than they are",
            f"give {(longest - 1) // 2} sinks or fewer",
        )
    if window <= sinks:
        fewer = f", or sinks={window - 1} or fewer" if window > 0 else ""
        raise UsageError(
            f"{name}: a window of {window} tokens is not larger than {sinks} sinks",
            f"give window={sinks + 1} or more{fewer}",
        )
    if window + sinks > longest:
        raise UsageError(
            f"{name}: window={window} and sinks={sinks} exceed the {longest} tokens that the rotation is made for",
            f"give window={longest - sinks} or less, or a --method that extends the rotation",
        )
    return {"window": window, "sinks": sinks, "sink_distance": rule, "evict": bool(given["evict"])}


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """The lambda-shaped mask and the clamped distances."""
    import torch

    del heads
    window, sinks = int(parameters["window"]), int(parameters["sinks"])
    apart, at = distances(length), torch.arange(length)
    near = apart < window
    if parameters["sink_distance"] == "ceiling":
        far = torch.full_like(apart, window)
    else:
        far = (at.clamp(max=sinks + window - 1)[:, None] - at[None, :])[None]
    return Pattern(causal(length) & (near | (at < sinks)), torch.where(near, apart, far))


def _resolver(name: str, rule: str) -> Callable[[Mapping[str, Value], Situation], dict[str, Any]]:
    return lambda given, situation: resolve(name, rule, given, situation)


def _parameters(sinks: int) -> tuple[Parameter, ...]:
    return (
        Parameter("window", "int", None, "last tokens that are seen, W; the trained length less the sinks"),
        Parameter("sinks", "int", sinks, "first tokens that are seen always, G"),
        Parameter("evict", "bool", True, "whether the cache drops what no later token sees; false keeps all"),
    )


_CAN = (
    "Runs at any length without training, with a cache of G + W - 1 tokens a row.",
    "Prefill grows linearly with the length; a decoded token costs the same at any length.",
)
_CANNOT = (
    "Does not extend what the model can use: nothing between the sinks and the window is seen, so there is no retrieval"
    " from there, however flat the perplexity.",
    "An evicting cache takes no token back: no assisted decoding, no mask of one's own (evict=false serves both).",
)
_COST = "O(T (W + G)) for a prompt, O(W + G) a decoded token, a cache of G + W - 1 tokens"
_ENGINES = "transformers with trust_remote_code; llama.cpp has a form of its own for plain checkpoints (--keep)"

ATTACHMENTS = (
    Attachment(
        name="lm-infinite",
        title="LM-Infinite",
        reference="2308.16137; Glaciohound/LM-Infinite:models/lambda_attention.py (MIT)",
        summary="Each token sees the first G and the last W tokens; a first token out of the window counts as W away.",
        can=_CAN,
        cannot=_CANNOT,
        needs="nothing",
        cost=_COST,
        engines=_ENGINES,
        parameters=_parameters(10),
        resolve=_resolver("lm-infinite", "ceiling"),
        pattern=pattern,
        system="lambda_window",
    ),
    Attachment(
        name="streaming-llm",
        title="StreamingLLM",
        reference="2309.17453; mit-han-lab/streaming-llm:streaming_llm/pos_shift/modify_llama.py (MIT)",
        summary="Each token sees the first G and the last W tokens, each as far away as its place in the cache is.",
        can=_CAN,
        cannot=_CANNOT,
        needs="nothing",
        cost=_COST,
        engines=_ENGINES,
        parameters=_parameters(4),
        resolve=_resolver("streaming-llm", "cache"),
        pattern=pattern,
        system="lambda_window",
    ),
)
