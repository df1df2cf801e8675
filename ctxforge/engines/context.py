"""From a config to what the readers need to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge import positions
from ctxforge.engines.classes import class_of_type
from ctxforge.engines.standard import specs
from ctxforge.engines.tables import meant
from ctxforge.engines.types import Context, Spec
from ctxforge.rope.architectures import ARCHITECTURES
from ctxforge.rope.custom_code import base_model_type, find_attachment, find_code
from ctxforge.rope.geometry import text_config
from ctxforge.schemes import understand

_REACHES_FACTOR = ("yarn", "longrope", "llama3", "dynamic")


def make_context(config: Mapping[str, Any], model_type: str | None = None) -> Context:
    """What the readers need to know about a config.

    Args:
        config: config.json, parsed.
        model_type: instead of the config's own.

    Raises:
        CheckpointError, UnsupportedError: the config is malformed, or its positions are not understood.
    """
    if model_type is not None:
        config = {**config, "model_type": model_type}
    code = find_code(config) or find_attachment(config)
    stock = {**config, "model_type": base_model_type(config)}
    scheme = positions.scheme(stock)
    if scheme != "rope":
        geometry = understand(stock)
        length = geometry.trained_length or geometry.max_position_embeddings
        name = geometry.model_type
        return Context(config, config, name, _class_name(config, name), None, scheme, {}, length, _code_name(code))
    name, inner = text_config(stock)
    architecture = ARCHITECTURES[name]
    return Context(
        config=config,
        inner=inner,
        model_type=name,
        class_name=_class_name(config, name),
        architecture=architecture,
        scheme=scheme,
        meant=meant(inner, name, architecture),
        target=max(map(_reach, specs(inner, name, architecture, "transformers 5").values())),
        code=_code_name(code),
    )


def _code_name(code: Any) -> str | None:
    return None if code is None else str(code.name)


def _class_name(config: Mapping[str, Any], model_type: str) -> str | None:
    """First of `architectures`; where that is absent, as in configs written by hand, the type's usual class."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return class_of_type(model_type)


def _reach(spec: Spec) -> int:
    """max_position_embeddings, or factor x original where that was left at the original length."""
    factor = spec.values.get("factor")
    if spec.rope_type in _REACHES_FACTOR and spec.longest <= spec.original and isinstance(factor, int | float):
        return max(spec.longest, round(spec.original * factor))
    return spec.longest
