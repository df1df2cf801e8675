"""Which caches serve, and where the positions of their keys stand.

A cache layer knows how many keys it holds, not where they are: rows are padded, packed, or jump. So the positions stand
in the cache itself, as the keys of one more layer past the model's own, and beams, crops and repeats move them together
with the keys. A cache remembers whose keys it holds: they are unrotated, and what may lie beside them (rotated copies,
dropped tokens) is one system's.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

OWNER = "ctxforge_owner"
_ARGUMENTS = ("cache", "past_key_values", "layer_past")
_REMEDY = "leave cache_implementation out, or pass a new DynamicCache"


def refuse_cache(given: dict[str, Any], name: str) -> None:
    """Raise NotImplementedError for a cache among a model's keyword arguments that no layer could serve.

    Args:
        given: the keyword arguments.
        name: of the system, for messages.
    """
    for key in _ARGUMENTS:
        cache = given.get(key)
        if cache is None:
            continue
        if not isinstance(cache, Cache) or not hasattr(cache, "layers"):
            raise NotImplementedError(
                f"{name} runs with a dynamic cache only, not with a {type(cache).__name__}: {_REMEDY}"
            )
        if getattr(cache, "offloading", False):
            raise NotImplementedError(f"{name} runs with a dynamic cache only, not with an offloaded one: {_REMEDY}")


def refuse_static(cache: Cache, layer: int, name: str) -> None:
    """Raise NotImplementedError for a cache whose layer does not simply grow."""
    if layer < len(cache.layers) and not isinstance(cache.layers[layer], DynamicLayer):
        found = type(cache.layers[layer]).__name__
        raise NotImplementedError(f"{name} runs with a dynamic cache only, not with {found}: {_REMEDY}")


def claim(cache: Cache, layer: int, owner: str, name: str) -> None:
    """Note that `owner` fills this cache.

    Raises:
        RuntimeError: another system did already.
    """
    if layer >= len(cache.layers) or cache.get_seq_length(layer) == 0:
        setattr(cache, OWNER, owner)
    elif getattr(cache, OWNER, owner) != owner:
        raise RuntimeError(
            f"the cache holds what another attention system put there: {name} needs one that it filled itself, or an"
            " empty DynamicCache"
        )


def remember_positions(cache: Cache, layer: int, positions: torch.Tensor, layers: int, name: str) -> torch.Tensor:
    """Positions of all keys of `layer` once this call's [B, T] are added, [B, past + T].

    Args:
        cache: the keys of this call not yet in it.
        layer: index.
        positions: of this call's keys.
        layers: of the model; the layer of positions stands at this index.
        name: of the system, for messages.

    Raises:
        RuntimeError: a cache that this model did not fill.
    """
    while len(cache.layers) <= layers:
        cache.layers.append(DynamicLayer())
    holder = cache.layers[layers]
    past, held, new = cache.get_seq_length(layer), holder.get_seq_length(), positions.shape[1]
    if held == past:
        held_positions = positions[:, None, :, None]
        holder.update(held_positions, held_positions)
    elif held != past + new:
        raise RuntimeError(
            f"the cache holds {past} keys in layer {layer} but {held} positions: {name} needs a cache that this model"
            " filled itself, or an empty DynamicCache"
        )
    return holder.keys[:, 0, :, 0]
