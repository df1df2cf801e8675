"""Transformer-XL's inference form: a window of cached states, exported as the architecture's own sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.attention.reference import Pattern, causal, distances
from ctxforge.attention.types import Attachment, Parameter, Situation, Value
from ctxforge.errors import UnsupportedError, UsageError

# Model types whose config has a sliding window for every layer, with the key that switches it on where there is one.
_WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {},
    "mixtral": {},
    "phi3": {},
    "phimoe": {},
    "starcoder2": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3_moe": {"use_sliding_window": True, "max_window_layers": 0},
}


def resolve(given: Mapping[str, Value], situation: Situation) -> dict[str, Any]:
    """The memory M in tokens: half of the trained length unless given.

    Raises:
        UsageError: a memory that is empty, or that with the token itself exceeds the trained length.
    """
    memory = int(given.get("memory", situation.trained_length // 2))  # type: ignore[arg-type]
    if not 1 <= memory < situation.trained_length:
        raise UsageError(
            f"transformer-xl: a memory of {memory} tokens is not 1 to {situation.trained_length - 1}",
            "leave memory out for half of the trained length, or give one in that range",
        )
    return {"memory": memory}


def plain(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config keys of a sliding window of M + 1 tokens.

    Raises:
        UnsupportedError: an architecture whose config has none for every layer.
    """
    model_type = str(config.get("model_type"))
    if model_type not in _WINDOWED:
        raise UnsupportedError(
            f"{model_type} has no config keys for transformer-xl, a sliding window on every layer, as"
            f" {', '.join(_WINDOWED)} have",
            f"the same window as custom code is --attach lm-infinite:window={int(parameters['memory']) + 1},sinks=0",
        )
    keys: dict[str, Any] = {"sliding_window": int(parameters["memory"]) + 1, **_WINDOWED[model_type]}
    if isinstance(config.get("layer_types"), list):
        keys["layer_types"] = ["sliding_attention"] * len(config["layer_types"])
    return keys


def pattern(parameters: Mapping[str, Any], length: int, heads: int) -> Pattern:
    """Each token sees itself and the M before it, as far away as they are: re-basing changes no distance."""
    del heads
    apart = distances(length)
    return Pattern(causal(length) & (apart <= int(parameters["memory"])), apart)


ATTACHMENTS = (
    Attachment(
        name="transformer-xl",
        title="Transformer-XL recurrence, inference form",
        reference="1901.02860; kimiyoung/transformer-xl (Apache-2.0)",
        summary="Keys and values of the last M tokens are kept; reach grows with depth to layers x M tokens.",
        can=("Runs at any length with a cache of M tokens.", "Engines serve it as the model's own sliding window."),
        cannot=("Nothing farther back than M tokens is seen directly: no retrieval at a distance.",),
        needs="training",
        cost="O(M) a token, a cache of M tokens",
        engines="every engine that serves the architecture's sliding window",
        parameters=(Parameter("memory", "int", None, "tokens that are kept, M; half of the trained length"),),
        resolve=resolve,
        pattern=pattern,
        plain=plain,
    ),
)
